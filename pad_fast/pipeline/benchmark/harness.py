"""Who asks and scores GSM8K: EleutherAI's lm-eval, or our own module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from pad_fast.environment import install_extra

HARNESSES = ("auto", "lm_eval", "own")


def harness_for(asked: str, servers: Sequence[str]) -> str:
    """Which of lm-eval and our own module generates and scores: "lm_eval" or "own".

    Args:
        asked: one of :data:`HARNESSES`.
        servers: URLs of servers that generate.

    Raises:
        ValueError: lm-eval was asked for, and it is not installed or servers are given.
    """
    if asked not in HARNESSES:
        raise ValueError(f"benchmark_harness: must be one of {', '.join(HARNESSES)}, got {asked!r}")
    there = find_spec("lm_eval") is not None
    if asked == "lm_eval" and not there:
        raise ValueError(f"benchmark_harness: lm_eval is not installed: {install_extra('eval')}")
    if asked == "lm_eval" and servers:
        raise ValueError(
            "benchmark_harness: lm_eval loads the model itself; leave out server, or take own"
        )
    return "lm_eval" if asked != "own" and there and not servers else "own"
