"""The scaling model is arithmetic: its cases worked out by hand, its limits, and the sentences about its numbers."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from bissl_fast.errors import UserError
from bissl_fast.measuring.forecast import CHANGES, Local, Plan, forecast
from bissl_fast.measuring.local_ranks import Share
from bissl_fast.measuring.machines import H200, machine_of
from bissl_fast.measuring.rank_work import UNITS
from bissl_fast.measuring.scaling import (
    KINDS,
    Cluster,
    Curve,
    Link,
    MeasuredWires,
    Message,
    Prediction,
    Sent,
    fitted,
    gradients_behind,
    predict,
    rows_gathered,
    statistics_by_sums,
    statistics_of_a_rank,
)
from bissl_fast.measuring.traffic import Line, Traffic

GRADIENT = Message("sum", 4e7)
SENT = Sent(
    (Message("gather", 1e3, count=20), Message("sum", 1e3, count=20), Message("shift", 1e4, count=6), GRADIENT), 900
)
TRAFFIC = Traffic((Line("sum", True, 4e7, 0, 1, 0), Line("shift", True, 0, 2e3, 2, 2)), (500, 1400, 12))
ALTERNATION = dict(zip(UNITS, (20, 8, 5, 200), strict=True))


def cluster(latency: float = 1e-6, bandwidth: float = 1e9) -> Cluster:
    return Cluster(4, Link(latency, bandwidth), Link(5 * latency, bandwidth / 4), call=2 * latency)


def test_a_collective_costs_what_its_hops_and_bytes_do() -> None:
    """Four ranks of one node with α = 1 and β = 1, then eight of two nodes, between which α = 5 and each β = 1/4."""
    near = Cluster(4, Link(1.0, 1.0), Link(5.0, 0.25), call=0.0)
    assert near.link("gather", 1, 4) == Link(3.0, 1 / 3)  # 3 hops, 3 messages through each link
    assert near.link("sum", 1e6, 4) == Link(6.0, 4 / 6)  # a ring: 2 (R − 1) hops, 2 (R − 1)/R n
    assert near.link("shift", 1, 4) == Link(1.0, 1.0)
    turn = 7 / 8 * (6 * 1.0 + 2 * 5.0)
    assert near.link("gather", 1, 8) == Link(turn, 1 / 7)  # the four GPUs of a node send 4 · 1/4 together
    assert near.link("sum", 1, 8) == Link(2 * (3 + 5.0), 0.5)  # a tree: 3 hops in a node, 1 between, up and down
    assert near.link("sum", 1e6, 8) == Link(2 * turn, 8 / 14)
    assert near.link("shift", 1, 8) == Link(5.0, 0.25)


def test_ranks_that_send_for_nothing_lose_nothing() -> None:
    free = Cluster(4, Link(0.0, math.inf), Link(0.0, math.inf), call=0.0)
    for ranks in (1, 8, 64, 512):
        assert predict(3.0, SENT, free, ranks).seconds == 3.0


def test_twice_the_latency_adds_the_latency_of_every_message_and_no_more() -> None:
    links = {(kind, 2): Link(0.25, 1e6) for kind in KINDS}
    slower = MeasuredWires({key: Link(2 * link.latency, link.bandwidth) for key, link in links.items()})
    once, twice = (predict(3.0, SENT, wires, 2).seconds for wires in (MeasuredWires(links), slower))
    assert twice - once == pytest.approx(0.25 * (20 + 20 + 6 + 1))


@pytest.mark.parametrize("ranks", [2, 4, 8, 64, 512])
def test_slower_links_and_more_ranks_never_take_less(ranks: int) -> None:
    usual = predict(1e-3, SENT, cluster(), ranks).seconds
    assert predict(1e-3, SENT, cluster(latency=2e-6), ranks).seconds > usual
    assert predict(1e-3, SENT, cluster(bandwidth=5e8), ranks).seconds > usual
    assert predict(1e-3, SENT, cluster(), 2 * ranks).seconds > usual


def test_what_is_not_waited_for_shows_only_where_it_outlasts_computing() -> None:
    wires = MeasuredWires({("sum", 2): Link(0.0, 1e7)})  # a gradient takes 4 s
    behind = gradients_behind(Sent((GRADIENT,)))
    assert [predict(c, Sent((GRADIENT,)), wires, 2).seconds for c in (3.0, 5.0)] == [7.0, 9.0]
    assert [predict(c, behind, wires, 2).seconds for c in (3.0, 5.0)] == [4.0, 5.0]


def test_a_host_that_calls_longer_than_the_device_works_is_what_counts() -> None:
    assert Prediction(computing=2.0, latency=1.0, calling=2.5).seconds == 3.0
    assert Prediction(computing=2.0, latency=1.0, calling=3.5).seconds == 3.5


def test_changes_send_what_they_say() -> None:
    kinds = [(m.kind, m.count) for m in statistics_by_sums(SENT).messages]
    assert kinds == [("sum", 20), ("sum", 20), ("shift", 6), ("sum", 1)]
    assert [m.kind for m in statistics_of_a_rank(SENT).messages] == ["shift", "sum"]
    ring = rows_gathered(SENT, 4, calls=800)  # 2 · 3 shifts of four ranks
    assert [(m.kind, m.bytes, m.count) for m in ring.messages][2] == ("gather", 1e4, 2)
    assert ring.calls == 800


def test_latency_and_bandwidth_are_read_off_times_that_have_them() -> None:
    sizes = [8, 1 << 10, 1 << 20, 48_000_000]
    link = fitted(sizes, [2e-4 + size / 7e8 for size in sizes])
    assert (link.latency, link.bandwidth) == pytest.approx((2e-4, 7e8))


def test_ranks_beyond_the_cores_take_turns_and_crowded_cores_are_slower() -> None:
    curves = {unit: Curve(((4, 1.0), (12, 2.0), (32, 5.0))) for unit in UNITS}
    links = {(kind, ranks): Link(0.0, math.inf) for kind in KINDS for ranks in (2, 4)}
    local = Local(2, curves, curves, 1.25, links)
    found = [
        local.predict("product", TRAFFIC, Share(r, images, 2)).computing for r, images in ((1, 32), (2, 8), (4, 8))
    ]
    assert found == pytest.approx([5.0, 1.5 * 1.25, 1.5 * 1.25 * 2])


def test_an_alternation_is_its_units_and_whoever_is_alone_is_fully_used() -> None:
    traffics = dict.fromkeys(UNITS, TRAFFIC)
    plan = Plan(ALTERNATION, 1024, 256, 128, (8, 64, 512))
    rows = {(row.scaling, row.ranks, row.what): row for row in forecast(H200, traffics, plan)}
    whole = rows["strong", 8, "alternation"]
    assert whole.seconds == pytest.approx(sum(n * rows["strong", 8, unit].seconds for unit, n in ALTERNATION.items()))
    assert all(row.efficiency == row.efficiency_uncalled == 1 for (_, ranks, _), row in rows.items() if ranks == 1)
    assert ("strong", 512, "alternation") not in rows, "256 downstream images do not share out over 512 GPUs"
    assert ("weak", 512, "alternation") in rows


def test_no_change_takes_longer_on_many_gpus() -> None:
    traffics = dict.fromkeys(UNITS, TRAFFIC)
    plan = Plan(ALTERNATION, 1024, 256, 128, (64,))
    usual, *changed = (
        next(row for row in forecast(H200, traffics, plan, change) if row.ranks == 64) for change in CHANGES.values()
    )
    assert all(row.seconds <= usual.seconds for row in changed)


def test_a_machine_is_read_from_a_file_and_its_gaps_are_named(tmp_path: Path) -> None:
    numbers = {name: asdict(number) for name, number in H200.numbers.items()}
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(numbers))
    assert machine_of(str(path)).numbers == H200.numbers
    path.write_text(yaml.safe_dump(numbers | {"call": {"value": -1, "known": "assumed", "source": ""}}))
    with pytest.raises(UserError, match=r"call \(seconds of the host for one call"):
        machine_of(str(path))
    del numbers["per-node"]
    path.write_text(yaml.safe_dump(numbers))
    with pytest.raises(UserError, match="missing or unknown: per-node"):
        machine_of(str(path))
    with pytest.raises(UserError, match="h200-nvlink-ib or a YAML file"):
        machine_of(str(tmp_path / "nowhere"))
