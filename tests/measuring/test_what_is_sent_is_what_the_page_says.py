"""Collectives are recorded as ranks send them, and are those of the table in docs/scaling.md."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.measuring.rank_work import CLASSES, RankWork, noise
from bissl_fast.measuring.scaling import KINDS, Message, Sent
from bissl_fast.measuring.traffic import Recorder, recorded, rehearsal, traffic_of
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network, build_projector, fuse_batch_norm
from bissl_fast.ops import Ranks, batch_norm_act
from bissl_fast.ops.collectives import all_gather, gathered, least, reduce_scatter, require_same
from bissl_fast.pretext import BYOL, BarlowTwins, Learner, MoCo, OptimizerSettings, PretextTask, SimCLR
from tests.ranks import Processes

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
RANKS, IMAGES, SIDE = 3, 4, 8
WIDTHS = (4, 6)  # of the two batch norms, in the backbone and the head
D = 5


def documented(row: str) -> list[int]:
    """The numbers of a row of the table "What is sent", one for each formula between semicolons."""
    cells = next(
        re.split(r"\s*\|\s*", line.strip("| ")) for line in PAGE.read_text().splitlines() if line.startswith(f"| {row}")
    )
    sizes = {"G": 2, "C": sum(WIDTHS), "B": IMAGES, "D": D, "L": 0, "R": RANKS}
    return [
        eval("*".join(str(sizes.get(word, word)) for word in re.findall(r"[A-Z]|\d+", formula)))
        for formula in cells[2].split(";")
    ]


def learner(ranks: Ranks | None, task: PretextTask) -> Learner:
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 3), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    backbone = fuse_batch_norm(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    head = build_projector(WIDTHS[0], (WIDTHS[1], D), seed=0) if isinstance(task, SimCLR) else task.head(WIDTHS[0], 0)
    return Learner(task, Network(backbone, head), ranks=ranks)


def numbers(sent: Sent) -> Counter[tuple[str, int]]:
    """How many numbers of float32 go by each kind of collective, and how often."""
    return Counter((m.kind, int(m.bytes) // 4) for m in sent.messages)


def total(found: Counter[tuple[str, int]], kind: str) -> int:
    return sum(size * count for (k, size), count in found.items() if k == kind)


def test_a_step_sends_what_the_page_says() -> None:
    with rehearsal(RANKS) as ranks:
        working = learner(ranks, SimCLR())
        found = numbers(recorded(lambda: working.backward(noise(IMAGES, SIDE, 2))))
    (rows,) = documented("NT-Xent")
    assert found[("shift", rows)] == 2 * (RANKS - 1)
    assert total(found, "shift") == 2 * (RANKS - 1) * rows
    assert total(found, "gather") == documented("batch norm, forward")[0]
    parameters = sum(p.numel() for p in working.network.parameters())
    assert total(found, "sum") == documented("backward;")[0] + parameters + 1  # and the loss
    assert found[("sum", parameters)] == found[("sum", 1)] == 1


def test_a_product_sends_what_the_page_says() -> None:
    with rehearsal(RANKS) as ranks:
        sent = units(ranks)
    primal, found = numbers(sent["linearisation"]), numbers(sent["product"])
    parameters = WIDTHS[0] * (3 * 3 * 3 + 1 + 2)
    backward, tangent, tangent_backward = documented("backward;")
    assert total(primal, "gather") == documented("batch norm, forward")[0] + 2  # the comparison of batches: one int64
    assert total(primal, "sum") == backward
    assert total(found, "sum") == tangent + tangent_backward + parameters
    assert found[("sum", parameters)] == 1
    for half in (primal, found):
        assert half[("shift", documented("NT-Xent")[0])] == 2 * (RANKS - 1)
        assert total(half, "shift") == 2 * (RANKS - 1) * documented("NT-Xent")[0]


def test_losses_send_what_the_page_says() -> None:
    def sent_by_loss(task: PretextTask, outputs: Sequence[Any]) -> Counter[tuple[str, int]]:
        with rehearsal(RANKS) as ranks:
            assert ranks is not None
            given = {"targets": [row.detach() for row in rows]} if task.needs.target else {}
            return numbers(recorded(lambda: task.share(outputs, given, ranks).backward()))

    rows = [torch.randn(IMAGES, D, requires_grad=True) for _ in range(2)]
    (each,) = documented("losses that compare")
    assert sent_by_loss(BarlowTwins(), rows) == {("gather", each): 2, ("scatter", each): 2}
    predicted = [(row, row) for row in rows]
    assert not sent_by_loss(BYOL(), predicted)


def test_a_queue_sends_what_the_page_says() -> None:
    with rehearsal(RANKS) as ranks:
        working = learner(ranks, MoCo(queue=RANKS * IMAGES, projector=(WIDTHS[1], D)))
        working.backward(noise(IMAGES, SIDE, 2))
        found = numbers(recorded(lambda: working.advance(0.0)))
    assert found == {("gather", documented("queue and centre")[0]): 1}


def test_a_collective_that_computing_goes_on_beside_is_not_waited_for() -> None:
    def beside(ranks: Ranks) -> None:
        ops = torch.ops._c10d_functional
        coming = ops.all_reduce(torch.ones(2), "sum", ranks.name)
        torch.ones(3).add(1)
        ops.wait_tensor(coming)

    with rehearsal(2) as ranks:
        assert ranks is not None
        assert [m.waited for m in recorded(lambda: beside(ranks)).messages] == [False]
        assert [m.waited for m in recorded(lambda: gathered(torch.ones(2), ranks)).messages] == [True]


def units(ranks: Ranks | None, images: int = IMAGES) -> dict[str, Sent]:
    """What a step, the primal half of a product and the product send."""
    working, views = learner(ranks, SimCLR()), noise(images, SIDE, 2)
    theta = ParameterVector(working.network, "backbone.")
    batches = [working.given([views])]
    hessian = HessianOperator(working.product_loss, theta, batches, mode="linearized", ranks=ranks)
    return {
        "step": recorded(lambda: working.backward(views)),
        "linearisation": recorded(lambda: hessian.update(batches)),
        "product": recorded(lambda: hessian.matvec(torch.ones(len(theta)))),
    }


def bytes_sent(ranks: Ranks) -> torch.Tensor:
    """Kind and size of all messages of all units, in their order."""
    messages = [message for sent in units(ranks).values() for message in sent.messages]
    return torch.tensor([[KINDS.index(message.kind), message.bytes] for message in messages])


def test_a_rehearsal_sends_what_real_ranks_send(two_ranks: Processes) -> None:
    with rehearsal(2) as ranks:
        assert ranks is not None
        expected = bytes_sent(ranks)
    assert all(torch.equal(found, expected) for found in two_ranks(bytes_sent))


def test_few_records_tell_what_more_ranks_send_of_more_images() -> None:
    @cache
    def record(ranks: int, images: int) -> dict[str, Sent]:
        with rehearsal(ranks) as present:
            return units(present, images)

    for unit, real in record(9, 5).items():
        told = traffic_of(lambda ranks, images, u=unit: record(ranks, images)[u]).sent(9, 5)  # type: ignore[misc]
        each = Counter({(m.kind, m.bytes): int(m.count) for m in told.messages})
        assert each == Counter((m.kind, m.bytes) for m in real.messages)
        assert told.calls == pytest.approx(real.calls, rel=0.05)


def test_records_that_no_line_goes_through_are_refused() -> None:
    def record(ranks: int, images: int) -> Sent:
        return Sent((Message("sum", 4.0 * images * ranks),))

    with pytest.raises(ValueError, match="of other sizes"):
        traffic_of(record)


class Stored:
    """A loader of one batch."""

    def __init__(self, *views: torch.Tensor) -> None:
        self.batch_size, self._views = len(views[0]), views

    def load(self, draw: int) -> Batch:
        indices = torch.zeros(self.batch_size, dtype=torch.long)
        return Batch(self._views, torch.arange(self.batch_size) % CLASSES, indices, 0)


def test_an_alternation_sends_what_its_units_send() -> None:
    """Beside them, it gathers the embeddings once, for its diagnostics."""
    settings = BiSSLSettings(alternations=1, lower_steps=2, upper_steps=2, solver_iterations=3, stored_batches=1)
    with rehearsal(2) as ranks:
        work = RankWork("conv4", 16, 2, 2, ranks)
        given = Stored(*work.views), Stored(work.photographs), None
        rates = OptimizerSettings(), SGDSettings(learning_rate=0.1, weight_decay=0.0)
        task = BiSSLTask(
            work.learner, work.downstream, *given, settings, BilevelSettings(), *rates, work.learner.forward
        )
        task.step(0)
        again = recorded(lambda: task.step(0))
        work.linearise()  # traces
        alone = {unit: numbers(recorded(call)) for unit, call in work.calls().items()}
    times = {"pretext step": 2, "upper step": 2, "linearisation": 1, "product": 2 * 3}
    expected = Counter({key: sum(n * alone[u][key] for u, n in times.items()) for key in set().union(*alone.values())})
    assert numbers(again) - expected == {("gather", 2 * 256): 1}
    assert not expected - numbers(again)


def test_a_scatter_counts_what_a_rank_gets() -> None:
    with rehearsal(RANKS) as ranks:
        x = torch.ones(2, 5, requires_grad=True)
        assert numbers(recorded(lambda: all_gather(x, ranks).sum().backward())) == {
            ("gather", 10): 1,
            ("scatter", 10): 1,
        }
        assert numbers(recorded(lambda: reduce_scatter(torch.ones(6, 5), ranks))) == {("scatter", 10): 1}


def passes(ranks: Ranks | None) -> dict[str, Callable[[], object]]:
    """A batch norm's passes, each behind those that it needs."""
    given = torch.randn(8, 3, 4, 4), torch.ones(3), torch.zeros(3)

    def run(*given: torch.Tensor) -> torch.Tensor:
        return batch_norm_act(*given, relu=True, groups=2, ranks=ranks)[0]

    def gradient(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.vjp(run, *given)[1](torch.ones(8, 3, 4, 4))

    return {
        "forward": lambda: run(*given),
        "backward": lambda: gradient(*given),
        "tangent": lambda: torch.func.jvp(run, given, given),
        "tangent of the backward": lambda: torch.func.jvp(gradient, given, given),
    }


def test_each_pass_of_a_batch_norm_calls_one_kernel_and_one_collective_more_over_ranks() -> None:
    """One kernel forms the sums, one does the rest; a collective is two calls: it is sent, and waited for."""
    alone = {name: recorded(call) for name, call in passes(None).items()}
    with rehearsal(RANKS) as ranks:
        over = {name: recorded(call) for name, call in passes(ranks).items()}
    for name, behind in {"forward": 0, "backward": 1, "tangent": 1, "tangent of the backward": 3}.items():
        assert len(over[name].messages) == 1 + behind, name
        assert over[name].calls - alone[name].calls == 3 * (1 + behind), name


class NothingOfTheHost(Recorder):
    """Refuses collectives of tensors that nobody has placed: while "meta" is the default, they are there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "_c10d_functional":
            assert args[0].device.type == "cpu", f"{func} of a tensor that is not where the network is"
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_steps_and_products_send_nothing_that_is_not_where_the_network_is() -> None:
    """A group of GPUs takes no tensor of the host, and none is made there by default."""
    with rehearsal(RANKS) as ranks:
        assert ranks is not None
        working, views, here = learner(ranks, SimCLR()), noise(IMAGES, SIDE, 2), torch.device("cpu")
        theta = ParameterVector(working.network, "backbone.")
        vector, batches = torch.ones(len(theta)), [working.given([views])]
        hessian = HessianOperator(working.product_loss, theta, batches, "linearized", ranks=ranks, check_every=1)
        with torch.device("meta"), NothingOfTheHost() as found:
            working.backward(views)
            hessian.update(batches)
            hessian.matvec(vector)
            least(1, ranks, here)
            require_same(0, ranks, here, "numbers")
            assert len(found.messages) > 20
            with pytest.raises(AssertionError, match="not where the network is"):
                gathered(torch.zeros(2), ranks)
