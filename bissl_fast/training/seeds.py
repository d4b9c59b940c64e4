"""One seed for everything that is drawn in a run."""

import hashlib


def derive_seed(seed: int, purpose: str) -> int:
    """An independent 63-bit seed for one purpose of a run."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "big") >> 1
