"""What is seen in a picture, in words, for readers who do not see it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.reported_metrics import is_measured
from pad_fast.report.run_records import Floats


def over_rounds(
    rows: Sequence[Row],
    lines: Mapping[str, str],
    levels: Mapping[str, tuple[float, str]],
    *,
    percent: bool = False,
) -> str:
    """Curves over the rounds: where each starts and ends, and the height of each level."""
    parts = []
    for key, label in lines.items():
        kept = [row for row in rows if is_measured(row.get(key))]
        parts.append(f"{label} {_way(kept, key, percent)}")
    parts += [f"{label} at {_number(level, percent)}" for label, (level, _) in levels.items()]
    return _sentence("Line chart over the rounds", parts)


def over_steps(rows: Sequence[Row], lines: Mapping[str, str]) -> str:
    """Curves over the optimizer's steps: their means over the first and the last tenth."""
    parts = []
    for key, label in lines.items():
        values = [row[key] for row in rows if is_measured(row.get(key))]
        tenth = max(1, len(values) // 10)
        first, last = np.mean(values[:tenth]), np.mean(values[-tenth:])
        parts.append(f"{label} from {_number(first)} to {_number(last)}")
    return _sentence("Line chart over the training steps", parts)


def histogram(before: Floats, after: Floats) -> str:
    """Losses of prompts: their medians, and for how many the loss fell."""
    fell = float(np.mean(after < before))
    return (
        f"Histogram of the losses of {len(before)} prompts: half are below "
        f"{_number(np.median(before))} before and below {_number(np.median(after))} after; the "
        f"loss fell for {fell:.0%}."
    )


def boxes(lengths: Mapping[int, NDArray[np.int64]]) -> str:
    """Lengths by round: their medians."""
    parts = [
        f"{np.median(found):.0f} in round {round} (middle half {np.quantile(found, 0.25):.0f} to "
        f"{np.quantile(found, 0.75):.0f})"
        for round, found in lengths.items()
    ]
    return _sentence("Box plot of tokens in a response, medians", parts)


def first_places(probabilities: Mapping[str, Floats], judge: str) -> str:
    """Bars of the probability of first place: what each side gives to the teacher's best."""
    parts = [
        f"{judge if name == 'teacher' else f'the student {name}'} {values[0]:.0%}"
        for name, values in probabilities.items()
    ]
    best = f"Bar chart of {len(next(iter(probabilities.values())))} responses, the {judge}'s best "
    return _sentence(f"{best}first; probability of first place for that one", parts)


def _sentence(start: str, parts: Sequence[str]) -> str:
    return f"{start}: {'; '.join(parts)}."


def _way(rows: Sequence[Row], key: str, percent: bool) -> str:
    """The value of each round, or of the first and the last of many."""
    shown = rows if len(rows) <= 4 else [rows[0], rows[-1]]
    return ", ".join(_steps(shown, key, percent))


def _steps(rows: Sequence[Row], key: str, percent: bool) -> Iterator[str]:
    for row in rows:
        yield f"{_number(row[key], percent)} in round {row['round']}"


def _number(value: float, percent: bool = False) -> str:
    return f"{100 * value:.1f}%" if percent else f"{value:.3g}".replace("-", "−")
