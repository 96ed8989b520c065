"""Variables of the environment that a run cannot have."""

from __future__ import annotations

from .attempt import Case


def _variable(name: str, value: str, *says: str, **more) -> Case:
    return Case("environment", f"{name}={value}", says, environment={name: value}, **more)


CASES = (
    _variable("WORLD_SIZE", "2", "WORLD_SIZE: is 2", "MASTER_PORT", "torchrun"),
    _variable("PAD_FAST_IMPL", "cuda", "PAD_FAST_IMPL", "cuda", "torch"),
    _variable("ACCELERATE_MIXED_PRECISION", "fp7", "fp7", "ACCELERATE_MIXED_PRECISION"),
    _variable(
        "ACCELERATE_MIXED_PRECISION",
        "bf16",
        "environment",
        "ACCELERATE_MIXED_PRECISION",
        "accept_environment",
        started=True,
    ),
    Case(
        "environment",
        "a path with a variable that is not set",
        ("prompts", "NOWHERE", "$NOWHERE/train.jsonl"),
        settings={"prompts": "$NOWHERE/train.jsonl"},
    ),
    Case(
        "environment",
        "the home folder of nobody",
        ("student", "~nobody-here"),
        settings={"student": "~nobody-here/student"},
    ),
)
