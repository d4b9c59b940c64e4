"""What a unit of work takes on R ranks: computing and sending, predicted from numbers measured apart.

A collective of n bytes takes latency and transfer, α + n/β (Hockney, 1994, "The communication challenge for MPP"). Of
rings, Thakur, Rabenseifner and Gropp (2005, "Optimization of collective communication operations in MPICH") give the
cost; of trees with the full bandwidth, Sanders, Speck and Träff (2009, "Two-tree algorithms for full bandwidth
broadcast, reduction and scan"). Everything here is a function of numbers alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

Kind = Literal["sum", "gather", "scatter", "shift"]
KINDS: tuple[Kind, ...] = ("sum", "gather", "scatter", "shift")


@dataclass(frozen=True)
class Message:
    """Collectives that are alike.

    Attributes:
        kind: sum over ranks, gather, scatter of a sum, or a shift round the ring.
        bytes: that a rank gives; of a scatter, that it gets.
        count: how many.
        waited: computing stands still until it is done.
    """

    kind: Kind
    bytes: float
    count: float = 1
    waited: bool = True


@dataclass(frozen=True)
class Sent:
    """What one rank does for a unit of work, beside arithmetic.

    Attributes:
        messages: that it sends.
        calls: of PyTorch's operators, which a host makes one after the other.
    """

    messages: tuple[Message, ...]
    calls: float = 0


@dataclass(frozen=True)
class Link:
    """A way for bytes.

    Attributes:
        latency: α, seconds of an empty message.
        bandwidth: β, bytes per second.
    """

    latency: float
    bandwidth: float

    def seconds(self, size: float) -> float:
        """α + n/β.

        Example:
            >>> Link(latency=1.0, bandwidth=4.0).seconds(8)
            3.0
        """
        return self.latency + size / self.bandwidth


class Wires(Protocol):
    """What carries messages."""

    def link(self, kind: Kind, size: float, ranks: int) -> Link:
        """Latency and bandwidth of a collective of ``size`` bytes per rank."""


@dataclass(frozen=True)
class MeasuredWires:
    """Collectives as they were measured, each by its kind and number of ranks."""

    links: Mapping[tuple[Kind, int], Link]

    def link(self, kind: Kind, size: float, ranks: int) -> Link:
        return self.links[kind, ranks]


@dataclass(frozen=True)
class Cluster:
    """Nodes of several devices: one link joins the devices of a node, one each device to other nodes.

    Attributes:
        per_node: g, devices of a node.
        inside: link between two devices of a node.
        between: link of one device to other nodes; those of a node carry a ring or a tree together.
        call: seconds of any collective beside its hops.
    """

    per_node: int
    inside: Link
    between: Link
    call: float

    def link(self, kind: Kind, size: float, ranks: int) -> Link:
        """The faster of ring and tree for a sum, a ring for gather and scatter, the slowest hop for a shift."""
        nodes = math.ceil(ranks / self.per_node)
        if kind == "shift":
            hop = self.inside if nodes == 1 else self.between
            return replace(hop, latency=self.call + hop.latency)
        widest = self.between.bandwidth * min(self.per_node, ranks)
        bandwidth = self.inside.bandwidth if nodes == 1 else min(self.inside.bandwidth, widest)
        crossings = nodes if nodes > 1 else 0
        turn = (ranks - 1) / ranks * ((ranks - crossings) * self.inside.latency + crossings * self.between.latency)
        if kind != "sum":
            return Link(self.call + turn, bandwidth / (ranks - 1))
        ring = Link(self.call + 2 * turn, bandwidth * ranks / (2 * (ranks - 1)))
        depth = (min(self.per_node, ranks) - 1) * self.inside.latency
        depth += math.ceil(math.log2(nodes)) * self.between.latency
        tree = Link(self.call + 2 * depth, bandwidth / 2)
        return min(ring, tree, key=lambda way: way.seconds(size))


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of the images of a rank, linear between and beyond what was measured.

    Attributes:
        points: images and seconds, two or more, images rising.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, images: float) -> float:
        """Never below 0.

        Example:
            >>> Curve(((2, 1.0), (4, 1.5), (8, 3.5))).at(6)
            2.5
        """
        after = next((k for k, (x, _) in enumerate(self.points) if k and x >= images), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[after - 1 : after + 1]
        return max(0.0, y0 + (y1 - y0) * (images - x0) / (x1 - x0))


@dataclass(frozen=True)
class Prediction:
    """Seconds of a unit of work on a rank, by what they go to.

    Attributes:
        computing: arithmetic.
        hidden: of messages that computing does not wait for; it shows where it is longer than computing.
        latency: α of all messages that are waited for.
        transfer: n/β of these.
        calling: the host's calls, which run ahead of the device.
    """

    computing: float
    hidden: float = 0.0
    latency: float = 0.0
    transfer: float = 0.0
    calling: float = 0.0

    @property
    def seconds(self) -> float:
        """The device's, one after the other, unless the host takes longer."""
        return max(max(self.computing, self.hidden) + self.latency + self.transfer, self.calling)


def predict(computing: float, sent: Sent, wires: Wires, ranks: int, per_call: float = 0.0) -> Prediction:
    """A unit of work on one of R ranks.

    Args:
        computing: seconds of arithmetic for this rank's images.
        sent: what it sends, and the calls it makes.
        wires: what carries messages.
        ranks: R.
        per_call: seconds of the host for each call; 0 where computing was measured with its calls.

    Example:
        >>> wires = MeasuredWires({("sum", 2): Link(0.5, 100.0)})
        >>> predict(3.0, Sent((Message("sum", 50.0, count=2),)), wires, 2).seconds
        5.0
    """
    hidden = latency = transfer = 0.0
    for message in sent.messages if ranks > 1 else ():
        link = wires.link(message.kind, message.bytes, ranks)
        if message.waited:
            latency += message.count * link.latency
            transfer += message.count * message.bytes / link.bandwidth
        else:
            hidden += message.count * link.seconds(message.bytes)
    return Prediction(computing, hidden, latency, transfer, per_call * sent.calls)


def strong_efficiency(one: float, seconds: float, ranks: int) -> float:
    """Share of R ranks' time that goes into what one rank does alone with the whole batch.

    Example:
        >>> strong_efficiency(8.0, 2.5, 4)
        0.8
    """
    return one / (ranks * seconds)


def weak_efficiency(one: float, seconds: float) -> float:
    """The same where each rank has as many images as the one alone.

    Example:
        >>> weak_efficiency(2.0, 2.5)
        0.8
    """
    return one / seconds


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """α and β through measured times, by least squares of relative errors; neither below 0.

    Args:
        sizes: bytes, two different ones at least.
        seconds: of each.

    Example:
        >>> link = fitted([0, 10, 20], [1.0, 2.0, 3.0])
        >>> round(link.latency, 6), round(link.bandwidth, 6)
        (1.0, 10.0)
    """
    from scipy.optimize import nnls

    weights = 1 / np.asarray(seconds)
    scale = float(max(sizes))
    columns = np.stack([weights, np.asarray(sizes) / scale * weights], 1)
    (latency, slope), _ = nnls(columns, np.ones(len(seconds)))
    return Link(float(latency), scale / float(slope) if slope > 0 else math.inf)


GRADIENT = 1 << 20
"""Bytes from which on a sum is that of a gradient or a product, which is as long as the parameters."""


def gradients_behind(sent: Sent) -> Sent:
    """Sums of gradients run while computing goes on, in pieces as they are made.

    Example:
        >>> [m.waited for m in gradients_behind(Sent((Message("sum", 4e7), Message("sum", 1024)))).messages]
        [False, True]
    """
    return _replaced(sent, lambda m: replace(m, waited=False) if _is_gradient(m) else m)


def statistics_by_sums(sent: Sent) -> Sent:
    """Sums in place of gathers, which go round all ranks one by one."""
    return _replaced(sent, lambda m: replace(m, kind="sum") if m.kind == "gather" else m)


def statistics_of_a_rank(sent: Sent) -> Sent:
    """Nothing is sent but gradients and what passes round the ring: other numbers, no longer those of one rank."""
    return _replaced(sent, lambda m: m if m.kind == "shift" or _is_gradient(m) else None)


def rows_gathered(sent: Sent, ranks: int, calls: float) -> Sent:
    """One gather in place of the R − 1 shifts of a ring.

    Args:
        sent: by one of R ranks.
        ranks: R.
        calls: those of one of two ranks, which has one block beside its own.
    """
    if ranks == 1:
        return sent

    def change(message: Message) -> Message:
        if message.kind != "shift":
            return message
        return replace(message, kind="gather", count=message.count / (ranks - 1))

    return replace(_replaced(sent, change), calls=calls)


def without_calls(sent: Sent) -> Sent:
    """A captured graph: the host calls nothing."""
    return replace(sent, calls=0)


def _is_gradient(message: Message) -> bool:
    return message.kind == "sum" and message.bytes >= GRADIENT


def _replaced(sent: Sent, change: Callable[[Message], Message | None]) -> Sent:
    return replace(sent, messages=tuple(new for m in sent.messages if (new := change(m)) is not None))
