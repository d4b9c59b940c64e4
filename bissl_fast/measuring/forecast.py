"""Predictions of whole units of work: beside what this machine's ranks took, and for GPUs that are not here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from bissl_fast.measuring.local_ranks import Case, Seconds, Share, collectives, computing, records, together
from bissl_fast.measuring.machines import Machine
from bissl_fast.measuring.rank_work import UNITS, Unit
from bissl_fast.measuring.scaling import (
    Curve,
    Kind,
    Link,
    MeasuredWires,
    Prediction,
    Sent,
    gradients_behind,
    predict,
    rows_gathered,
    statistics_by_sums,
    statistics_of_a_rank,
    strong_efficiency,
    weak_efficiency,
    without_calls,
)
from bissl_fast.measuring.traffic import SEVERAL, Traffic, traffic_of

LOCAL = (1, 2, 4)
"""Ranks of this machine."""
Traffics = Mapping[Unit, Traffic]
Change = Callable[[Sent, int, Traffic], Sent]
"""Of what one of R ranks sends, from what the unit sends in general."""


@dataclass(frozen=True)
class Checked:
    """A unit on ranks of this machine, predicted and then run.

    Attributes:
        unit: what.
        scaling: `strong`: the batch of all ranks is fixed; `weak`: that of one.
        ranks: R.
        images: of a rank.
        predicted: before it was run.
        seconds: it took.
        efficiency: as predicted, and as measured.
    """

    unit: Unit
    scaling: str
    ranks: int
    images: int
    predicted: Prediction
    seconds: float
    efficiency: tuple[float, float]

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted.seconds / self.seconds - 1


@dataclass(frozen=True)
class Local:
    """What this machine's cores and gloo were measured to take, apart from each other.

    Attributes:
        cores: that ranks share.
        alone: seconds of one process without ranks, by images, nothing else running.
        as_rank: of one of two ranks that sends nothing, likewise.
        crowding: how many times as long a rank computes while every core has one that does.
        links: of collectives.
    """

    cores: int
    alone: Mapping[Unit, Curve]
    as_rank: Mapping[Unit, Curve]
    crowding: float
    links: Mapping[tuple[Kind, int], Link]

    def predict(self, unit: Unit, traffic: Traffic, share: Share) -> Prediction:
        """Ranks beyond the cores take turns at computing."""
        if share.ranks == 1:
            return predict(self.alone[unit].at(share.images), Sent(()), MeasuredWires({}), 1)
        turns = max(1.0, share.ranks / self.cores)
        crowding = 1 + (self.crowding - 1) * min(1.0, (share.ranks - 1) / max(1, self.cores - 1))
        seconds = self.as_rank[unit].at(share.images) * crowding * turns
        return predict(seconds, traffic.sent(share.ranks, share.images), MeasuredWires(self.links), share.ranks)


def recorded_traffic(case: Case) -> dict[Unit, Traffic]:
    """What each unit sends, from rehearsals with a few ranks of 2 and 4 images."""
    shares = [share_of(1, 2), share_of(2, 2), share_of(2, 4), share_of(SEVERAL, 2)]
    found = {(share.ranks, share.images): sent for share, sent in zip(shares, records(case, shares), strict=True)}
    return {unit: traffic_of(lambda ranks, images, u=unit: found[ranks, images][u]) for unit in UNITS}  # type: ignore[misc]


def measured_apart(case: Case, batch: int, cores: int) -> Local:
    """Computing at an eighth, three eighths and the whole of a batch, and collectives.

    Args:
        case: what is trained.
        batch: images of all ranks, a multiple of 16: batch norms of a head take two at least.
        cores: of this machine.
    """
    sizes = (batch // 8, 3 * batch // 8, batch)
    shares = {ranks: [share_of(ranks, images) for images in sizes] for ranks in (1, 2)}
    alone, as_rank = (curves(sizes, computing(case, shares[ranks])) for ranks in (1, 2))
    crowded = computing(case, shares[2][1:2], cores)[0]
    usual = {unit: curve.at(sizes[1]) for unit, curve in as_rank.items()}
    links = {(kind, r): link for r in LOCAL[1:] for kind, link in collectives(r, case.rounds).items()}
    return Local(cores, alone, as_rank, max(1.0, sum(crowded.values()) / sum(usual.values())), links)


def share_of(ranks: int, images: int) -> Share:
    """A rank's part: half as many downstream images as pretext images, and two at least, as batch norms need."""
    return Share(ranks, images, max(2, images // 2))


def curves(sizes: Sequence[int], seconds: Sequence[Seconds]) -> dict[Unit, Curve]:
    """Each unit's seconds through the measured sizes."""
    return {
        unit: Curve(tuple((float(size), found[unit]) for size, found in zip(sizes, seconds, strict=True)))
        for unit in UNITS
    }


def checked(case: Case, batch: int, local: Local, traffics: Traffics) -> Iterator[Checked]:
    """Strong scaling of the batch, and weak with half of it on each rank, as soon as each number of ranks has run."""
    ones: dict[tuple[str, Unit], tuple[float, float]] = {}
    for ranks in LOCAL:
        ways = {"strong": batch // ranks, "weak": batch // 2}
        shares = {images: share_of(ranks, images) for images in ways.values()}
        took = dict(zip(shares, together(case, ranks, list(shares.values())), strict=True))
        for scaling, images in ways.items():
            for unit in UNITS:
                predicted = local.predict(unit, traffics[unit], shares[images])
                pair = predicted.seconds, took[images][unit]
                one = ones.setdefault((scaling, unit), pair)
                efficiencies = tuple(_efficiency(scaling, *both, ranks) for both in zip(one, pair, strict=True))
                yield Checked(unit, scaling, ranks, images, predicted, pair[1], efficiencies)  # type: ignore[arg-type]


def _efficiency(scaling: str, one: float, seconds: float, ranks: int) -> float:
    return strong_efficiency(one, seconds, ranks) if scaling == "strong" else weak_efficiency(one, seconds)


@dataclass(frozen=True)
class Forecast:
    """A unit, or an alternation of them, on GPUs.

    Attributes:
        what: its name.
        scaling: strong or weak.
        ranks: R.
        images: of a rank.
        parts: of the seconds; of an alternation, the sums over its units.
        seconds: predicted; of an alternation, the sum over its units.
        efficiency: predicted.
        efficiency_uncalled: likewise if no GPU, one alone neither, ever waited for its host's calls.
    """

    what: str
    scaling: str
    ranks: int
    images: float
    parts: Prediction
    seconds: float
    efficiency: float
    efficiency_uncalled: float


@dataclass(frozen=True)
class Plan:
    """What is forecast.

    Attributes:
        alternation: how often it does each unit.
        batch: pretext images of all ranks, in strong scaling.
        downstream: downstream images of all ranks, likewise; more ranks have no upper step, and no alternation.
        local: pretext images of a rank, in weak scaling.
        gpus: numbers of ranks.
    """

    alternation: Mapping[Unit, int]
    batch: int
    downstream: int
    local: int
    gpus: Sequence[int]


def forecast(machine: Machine, traffics: Traffics, plan: Plan, change: Change | None = None) -> Iterator[Forecast]:
    """Each unit and a whole alternation on 1 and more GPUs, strong scaling first.

    Args:
        machine: whose numbers are taken.
        traffics: what each unit sends.
        plan: for what.
        change: of what is sent, to see what it would do.
    """
    for scaling in ("strong", "weak"):
        ones: dict[str, tuple[float, float]] = {}
        for ranks in (1, *plan.gpus):
            images = plan.batch / ranks if scaling == "strong" else float(plan.local)
            for what, pieces in _pieces(machine, traffics, plan, ranks, images, change).items():
                if scaling == "strong" and ranks > plan.downstream and what in ("upper step", ALTERNATION):
                    continue
                seconds = sum(count * part.seconds for count, part in pieces)
                uncalled = sum(count * replace(part, calling=0.0).seconds for count, part in pieces)
                one = ones.setdefault(what, (seconds, uncalled))
                shares = [_efficiency(scaling, *pair, ranks) for pair in zip(one, (seconds, uncalled), strict=True)]
                yield Forecast(what, scaling, ranks, images, summed_up(pieces), seconds, *shares)


ALTERNATION = "alternation"


def _pieces(
    machine: Machine, traffics: Traffics, plan: Plan, ranks: int, images: float, change: Change | None
) -> dict[str, list[tuple[int, Prediction]]]:
    """How often each unit is done, and what it takes, for each unit by itself and for an alternation."""
    found: dict[Unit, Prediction] = {}
    for unit, traffic in traffics.items():
        sent = traffic.sent(ranks, images)
        sent = sent if change is None else change(sent, ranks, traffic)
        found[unit] = predict(machine.curve(unit).at(images), sent, machine.wires, ranks, machine["call"])
    units: dict[str, list[tuple[int, Prediction]]] = {unit: [(1, part)] for unit, part in found.items()}
    return units | {ALTERNATION: [(plan.alternation[unit], part) for unit, part in found.items()]}


def summed_up(pieces: Sequence[tuple[int, Prediction]]) -> Prediction:
    """The parts of several units, each done so often."""
    totals = [
        sum(count * part for count, part in zip((c for c, _ in pieces), values, strict=True))
        for values in zip(*(astuple(p) for _, p in pieces), strict=True)
    ]
    return Prediction(*totals)


def _rows(sent: Sent, ranks: int, traffic: Traffic) -> Sent:
    return rows_gathered(sent, ranks, traffic.calls[1])


def _all(sent: Sent, ranks: int, traffic: Traffic) -> Sent:
    return without_calls(gradients_behind(_rows(statistics_by_sums(sent), ranks, traffic)))


CHANGES: Mapping[str, Change | None] = {
    "as it is": None,
    "embeddings gathered at once, no ring": _rows,
    "no more calls than one process makes, no ring": lambda sent, ranks, traffic: replace(
        _rows(sent, ranks, traffic), calls=traffic.calls[0]
    ),
    "no calls, as in a captured graph": lambda sent, *_: without_calls(sent),
    "no calls, embeddings gathered at once": lambda sent, *given: without_calls(_rows(sent, *given)),
    "no calls, batch-norm statistics by sums, no gather": lambda sent, *_: without_calls(statistics_by_sums(sent)),
    "no calls, gradients summed behind the backward pass": lambda sent, *_: without_calls(gradients_behind(sent)),
    "all of these": _all,
    "all of these, statistics of each rank alone (other numbers)": lambda sent, *given: _all(
        statistics_of_a_rank(sent), *given
    ),
}
"""What would mend it."""
