"""Memory that is full, on the host or on a device, told in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bissl_fast.errors import UserError


@contextmanager
def memory_told() -> Iterator[None]:
    """Make a sentence of memory that is full."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"memory is full ({str(error).splitlines()[0]}); lower --pretrain.batch-size, --finetune.batch-size or "
            "--images.size, or set --pretrain.chunk, then run the same command again: finished stages that it leaves "
            "alone are kept."
        ) from None
