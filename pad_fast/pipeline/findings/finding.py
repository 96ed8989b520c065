"""What a check of the doctor found, and how severe it is.

A check is a pure function of scored rows that returns a :class:`Finding`. Its docstring states the
limits of its verdicts. They are our own choice: what is common in a healthy run is ``ok``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pad_fast.files.stored_rows import Row

Verdict = Literal["ok", "look", "problem"]

NOT_FINITE = "a model gives numbers that are not finite: set dtype: float32, and check its weights"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: its name.
        verdict: "ok", "look" or "problem".
        found: what was found.
        advice: what to do about it; nothing is kept of it if the verdict is ok.
        numbers: the numbers behind the verdict.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        verdict, advice = self.verdict, "" if self.verdict == "ok" else self.advice
        # No comparison with NaN is true, so that no limit would ever be reached.
        if any(isinstance(value, float) and not math.isfinite(value) for value in self._values()):
            verdict, advice = "problem", advice or NOT_FINITE
        object.__setattr__(self, "verdict", verdict)
        object.__setattr__(self, "advice", advice)

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
    numbers = {"share": share, **(numbers or {})}
    return Finding(check, grade(share, look, problem), found, advice, numbers)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some taus and its standard error.

    A single value has no standard error; 1 is used then, the largest that a tau can have.
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return statistics.fmean(values), error


def share_text(count: int, whole: Sequence[Any]) -> str:
    return f"{count / len(whole):.0%}"
