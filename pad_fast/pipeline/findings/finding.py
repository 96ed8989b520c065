"""What a check of the doctor found, and how severe it is.

A check is a pure function of scored rows that returns a :class:`Finding`. Its docstring states the
limits of its verdicts. They are our own choice: what is common in a healthy run is ``ok``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pad_fast.pipeline.whole_files import Row

Verdict = Literal["ok", "look", "problem"]

NOT_FINITE = "a model gives numbers that are not finite: set dtype: float32, and check its weights"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: its name.
        verdict: "ok", "look" or "problem".
        found: what was found.
        advice: what to do about it; empty if the verdict is ok.
        numbers: the numbers behind the verdict.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # No comparison with NaN is true, so that no limit would ever be reached.
        if any(isinstance(value, float) and not math.isfinite(value) for value in self._values()):
            object.__setattr__(self, "verdict", "problem")
            object.__setattr__(self, "advice", self.advice or NOT_FINITE)

    def _values(self) -> Iterator[Any]:
        for value in self.numbers.values():
            yield from value if isinstance(value, list | tuple) else (value,)


def grade(value: float, look: float, problem: float) -> Verdict:
    """The verdict on a value; each limit belongs to the worse verdict, and NaN to the worst."""
    return "problem" if not value < problem else "look" if value >= look else "ok"


def graded(
    check: str,
    share: float,
    look: float,
    problem: float,
    found: str,
    advice: str,
    numbers: Row | None = None,
) -> Finding:
    """The finding of a share that should be small; without advice if it is."""
    verdict = grade(share, look, problem)
    return Finding(
        check,
        verdict,
        found,
        "" if verdict == "ok" else advice,
        {"share": share, **(numbers or {})},
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some taus and its standard error.

    A single value has no standard error; 1 is used then, the largest that a tau can have.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 1.0
    return mean, math.sqrt(
        math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
    )


def share_text(count: int, whole: Sequence[Any]) -> str:
    return f"{count / len(whole):.0%}"
