"""Settings that cannot be meant."""

import math

from bissl_fast.errors import UserError


def require(holds: bool, setting: str, found: object, expected: str) -> None:
    """Raise the sentence for a setting outside its range unless ``holds``."""
    if isinstance(found, float) and not math.isfinite(found):
        raise UserError(f"--{setting} must be finite and {expected}, found {found}.")
    if not holds:
        raise UserError(f"--{setting} must be {expected}, found {found}.")
