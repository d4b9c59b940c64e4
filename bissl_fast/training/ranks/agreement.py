"""What the ranks of a run agree on beside their numbers: what the first has found, and when to stop.

Rank 0, the *lead*, decides, reads and writes. While it works alone, the others wait for as long as it takes: outside
of any collective of the device, and open to signals.
"""

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from bissl_fast.errors import UserError
from bissl_fast.ops.collectives import Ranks, summed
from bissl_fast.training.files import exclusive
from bissl_fast.training.ranks.lead import is_lead

BatchNormOver = Literal["ranks", "rank"]


@dataclass(frozen=True)
class DistributedSettings:
    """How ranks work together, where a launcher such as torchrun has started several (docs/scaling.md).

    Attributes:
        batch_norm: whose images batch norms take their statistics of: those of all `ranks` together, which makes the
            result that of one process, or of each `rank` alone, which sends less and changes the result.
        shard: spread parameters, gradients and the optimiser's state over the ranks (FSDP2) in pretext training and
            fine-tuning, for backbones that do not fit one device.
        check_every: steps between comparisons of all state over the ranks, by hash; 0 makes none.
        timeout: seconds that a rank waits for the others in a collective.
    """

    batch_norm: BatchNormOver = "ranks"
    shard: bool = False
    check_every: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.check_every < 0:
            raise UserError(f"--distributed.check-every must be 0 or more, found {self.check_every}.")
        if not self.timeout > 0:
            raise UserError(f"--distributed.timeout must be positive, found {self.timeout}.")

    def ranks(self) -> Ranks | None:
        """The ranks that there are, with batch norms as they are wanted; ``None`` for one process."""
        found = Ranks.present()
        if found is not None:
            set_timeout(datetime.timedelta(seconds=self.timeout))
        return None if found is None else replace(found, own_statistics=self.batch_norm == "rank")


def set_timeout(timeout: datetime.timedelta) -> None:
    """How long collectives of the group of all ranks wait; torch has a public name for it from 2.14 on."""
    c10d = dist.distributed_c10d
    (c10d.set_timeout if hasattr(c10d, "set_timeout") else c10d._set_pg_timeout)(timeout)


LONG = datetime.timedelta(days=30)
"""That the others wait for the lead; a lead that has died is known at once."""

POLL_SECONDS = 0.005


def held(folder: Path, ranks: Ranks | None) -> contextlib.AbstractContextManager[None]:
    """A folder held for all ranks by the lead.

    Raises:
        UserError: on the lead, if another process holds it.
    """
    return exclusive(folder) if is_lead(ranks) else contextlib.nullcontext()


def led(work: Callable[[], str], ranks: Ranks | None) -> str:
    """What the lead's work has found, on every rank.

    Args:
        work: done by the lead alone.
        ranks: which have to call this together.

    Raises:
        UserError: on every rank, if the work does.
    """
    if ranks is None:
        return work()
    if is_lead(ranks):
        try:
            found = work()
        except UserError as error:
            _told(json.dumps({"error": str(error)}))
            raise
        _told(json.dumps({"found": found}))
        return found
    message = json.loads(_told(None))
    if "error" in message:
        raise UserError(message["error"])
    return str(message["found"])


def meet(ranks: Ranks | None) -> None:
    """Wait until all ranks are here, for as long as it takes."""
    if ranks is not None:
        _patiently(dist.all_reduce, torch.zeros(()))


@contextlib.contextmanager
def lead_first(ranks: Ranks | None) -> Iterator[None]:
    """What the lead does first and the others after it, as they find what it has left.

    Raises:
        UserError: on every rank, if the lead does.
    """
    if not is_lead(ranks):
        led(str, ranks)
        yield
        return
    try:
        yield
    except UserError as error:
        if ranks is not None:
            _told(json.dumps({"error": str(error)}))
        raise
    led(str, ranks)


def anywhere(flags: Sequence[bool], ranks: Ranks | None) -> list[bool]:
    """Of each flag whether any rank has set it. One small sum, which all ranks call together."""
    if ranks is None:
        return list(flags)
    return [bool(count) for count in summed(torch.tensor(flags, dtype=torch.int32), ranks).tolist()]


def _told(text: str | None) -> str:
    """A text of the lead on all ranks."""
    content = torch.tensor(list((text or "").encode()), dtype=torch.uint8)
    length = int(_patiently(dist.broadcast, torch.tensor(len(content)), src=0))
    received = torch.empty(length, dtype=torch.uint8) if text is None else content
    return bytes(_patiently(dist.broadcast, received, src=0).tolist()).decode()


def _patiently(collective: Callable[..., Any], tensor: torch.Tensor, **options: Any) -> torch.Tensor:
    """The tensor after a collective that waits for long, where signals are heard meanwhile."""
    work = collective(tensor, group=_waiting_room(), async_op=True, **options)
    while not work.is_completed():
        time.sleep(POLL_SECONDS)
    work.wait()
    return tensor


@cache
def _waiting_room() -> Any:
    """A group of all ranks on the host, made when it is first needed, by all of them."""
    return dist.new_group(backend="gloo", timeout=LONG)
