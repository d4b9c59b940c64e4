"""Settings that cannot be meant, and settings that do nothing."""

import math
from collections.abc import Mapping
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.ops.collectives import Ranks


def require(holds: bool, setting: str, found: object, expected: str) -> None:
    """Raise the sentence for a setting outside its range unless ``holds``."""
    if isinstance(found, float) and not math.isfinite(found):
        raise UserError(f"--{setting} must be finite and {expected}, found {found}.")
    if not holds:
        raise UserError(f"--{setting} must be {expected}, found {found}.")


def require_parts(images: int, setting: str, ranks: Ranks | None) -> None:
    """Raises UserError: if so many images, which a setting asks for, have no equal parts for the ranks of a run."""
    if ranks is not None and images % ranks.size:
        raise UserError(
            f"--{setting} {images} has no equal parts for {ranks.size} ranks: take a multiple of {ranks.size}, or as "
            f"many processes as divide {images}."
        )


def without_effect(group: str, settings: Any, idle: Mapping[str, str]) -> list[str]:
    """A sentence for each setting that has been given a value and does nothing.

    One that is as it always is was given by nobody, and is passed over. Of settings that differ between presets it
    cannot be known, so that none of these belongs into ``idle``.

    Args:
        group: name of the settings on the command line.
        settings: a dataclass of which every field has a default.
        idle: its fields that do nothing beside the values of the others, each with the words for where that is so.

    Example:
        >>> from bissl_fast.methods.fussl.settings import FUSSLSettings
        >>> without_effect("fussl", FUSSLSettings(rounds=9), {"rounds": "but with --fussl.case progressive"})
        ['--fussl.rounds has no effect but with --fussl.case progressive']
    """
    usual = type(settings)()
    changed = (name for name in idle if getattr(settings, name) != getattr(usual, name))
    return [f"--{group}.{name.replace('_', '-')} has no effect {idle[name]}" for name in changed]
