"""Descriptions of many GPUs, number by number: what was measured, what a vendor publishes, what is assumed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bissl_fast.errors import UserError
from bissl_fast.measuring.rank_work import UNITS, Unit
from bissl_fast.measuring.scaling import Cluster, Curve, Link
from bissl_fast.plain import parse_yaml

Known = Literal["measured", "published", "assumed"]

WANTED = {
    "per-node": "GPUs of a node",
    "inside-latency": "seconds of a hop between two GPUs of a node",
    "inside-bandwidth": "bytes per second that a GPU sends to others of its node",
    "between-latency": "seconds of a hop between nodes",
    "between-bandwidth": "bytes per second that a GPU sends to other nodes",
    "collective": "seconds of a collective beside its hops",
    "call": "seconds of the host for one call of an operator",
    "images": "pretext images that the units below were timed with",
    **{unit.replace(" ", "-"): f"seconds of one {unit} of so many images on one GPU" for unit in UNITS},
}
"""What a machine is described by."""


@dataclass(frozen=True)
class Number:
    """One number of a machine.

    Attributes:
        value: above 0, in seconds, bytes per second or a count.
        known: how.
        source: where from, in words.
    """

    value: float
    known: Known
    source: str


@dataclass(frozen=True)
class Machine:
    """GPUs, what joins them, and what one of them computes.

    Attributes:
        name: of the machine.
        numbers: by the names of :data:`WANTED`.
    """

    name: str
    numbers: Mapping[str, Number]

    def __getitem__(self, name: str) -> float:
        return self.numbers[name].value

    @property
    def wires(self) -> Cluster:
        """What joins the GPUs."""
        inside = Link(self["inside-latency"], self["inside-bandwidth"])
        between = Link(self["between-latency"], self["between-bandwidth"])
        return Cluster(int(self["per-node"]), inside, between, self["collective"])

    def curve(self, unit: Unit) -> Curve:
        """Seconds of arithmetic in proportion to images: what the host costs is told by its calls."""
        return Curve(((0.0, 0.0), (self["images"], self[unit.replace(" ", "-")])))


NCCL = "the model by which NCCL chooses its algorithms has it (graph/tuning.cc, low-latency protocol)"
UPPER = "results/upper_phase_h200_tf32.md: 4.11 s for 5 linearisations and 50 products, split as on a CPU (0.53 : 1)"
H200 = Machine(
    "h200-nvlink-ib",
    {
        "per-node": Number(8, "published", "HGX H200"),
        "inside-latency": Number(0.6e-6, "assumed", NCCL),
        "inside-bandwidth": Number(360e9, "assumed", "80 % of the 450 GB/s a direction that NVIDIA publishes"),
        "between-latency": Number(5e-6, "assumed", NCCL),
        "between-bandwidth": Number(
            40e9, "assumed", "80 % of the 400 Gbit/s that NVIDIA publishes, one NDR port a GPU"
        ),
        "collective": Number(6.8e-6, "assumed", NCCL),
        "call": Number(
            23e-6, "assumed", "results/nt_xent_h200.md: 1.32 ms for the 58 calls of plain PyTorch's NT-Xent"
        ),
        "images": Number(1024, "measured", "ResNet-18, 96 px"),
        "pretext-step": Number(
            0.061, "measured", "results/step_h200.md, bfloat16; that it is all the GPU's is assumed"
        ),
        "upper-step": Number(0.015, "assumed", "two passes of 256 views beside the step's one of 2048"),
        "linearisation": Number(0.041, "measured", UPPER),
        "product": Number(0.078, "measured", UPPER),
    },
)


def machine_of(text: str) -> Machine:
    """The machine of a name, or of a YAML file that has ``value``, ``known`` and ``source`` for each name of `WANTED`.

    Raises:
        UserError: for a file that cannot be read, or lacks a number.

    Example:
        >>> machine_of("h200-nvlink-ib")["per-node"]
        8
    """
    if text == H200.name:
        return H200
    path = Path(text)
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--machine takes {H200.name} or a YAML file of numbers, found {text}: {error}.") from None
    if not isinstance(found, dict) or set(found) != set(WANTED):
        named = set(found) if isinstance(found, dict) else set()
        wrong = ", ".join(sorted(map(str, named ^ set(WANTED))))
        raise UserError(f"{text} must have the numbers {', '.join(WANTED)}; missing or unknown: {wrong}.")
    return Machine(path.stem, {name: _number(text, name, value) for name, value in found.items()})


def _number(text: str, name: str, found: Any) -> Number:
    """One entry of a file."""
    fits = isinstance(found, dict) and set(found) == {"value", "known", "source"} and found["known"] in get_args(Known)
    if not fits or not isinstance(found["value"], int | float) or not 0 < found["value"] < float("inf"):
        example = {name: asdict(H200.numbers[name])}
        raise UserError(f"{text}: {name} ({WANTED[name]}) must be as in {example}, found {found}.")
    return Number(float(found["value"]), found["known"], str(found["source"]))
