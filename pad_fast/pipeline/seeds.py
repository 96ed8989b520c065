"""Seeds of the parts of a run, derived from the run's seed."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part and is the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def round_seed(seed: int, round: int, phase: str) -> int:
    """The seed of one phase of one round."""
    return derive_seed(seed, round, phase)
