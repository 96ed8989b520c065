"""The one list of reported metrics.

Evaluation files, the terminal's table, the report's page and pictures, and the demo's benchmark
iterate over :data:`METRICS`. A new metric is a new entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from pad_fast.evaluation.evaluated_model import (
    Evaluated,
    Row,
    accuracy_by_prompt,
    mean,
)
from pad_fast.evaluation.intervals import Interval, Values, mean_interval


@dataclass(frozen=True)
class Metric:
    """One number that is reported for every evaluated model.

    Args:
        key: the name in evaluation files.
        label: the column's heading on the report's page.
        measure: computes the value from what a model was evaluated on, None where it does not
            apply; by default it is the mean of those that ``by_prompt`` gives.
        heading: the column's heading in tables of text; ``label`` if empty.
        narrow: the heading in the terminal, on two lines; ``heading`` if empty.
        percent: whether the value is a share, to be shown in percent.
        digits: the number of decimals.
        better: +1 if more is better, -1 if less is better, 0 if neither.
        headline: whether the metric has a tile at the top of the page.
        detail: whether only the page shows it, and not the terminal's and the demo's tables.
        by_skill: whether it is also measured on the prompts of each skill.
        by_prompt: computes the value of each prompt, None for one that does not count; without it
            the metric has no interval.
        picture: the name of a :class:`pad_fast.report.pictures.RoundPicture` with a curve of it.
        curve: the label of that curve; ``heading`` if empty.
    """

    key: str
    label: str
    measure: Callable[[Evaluated], float | None] | None = None
    heading: str = ""
    narrow: str = ""
    percent: bool = False
    digits: int = 3
    better: int = 0
    headline: bool = False
    detail: bool = False
    by_skill: bool = False
    by_prompt: Callable[[Evaluated], Iterable[float | None]] | None = None
    picture: str = ""
    curve: str = ""

    @property
    def text_heading(self) -> str:
        """The column's heading in a table of text."""
        return self.heading or self.label

    @property
    def terminal_heading(self) -> str:
        """The column's heading in the terminal."""
        return self.narrow or self.text_heading

    @property
    def curve_label(self) -> str:
        """The curve's label in a picture."""
        return self.curve or self.text_heading

    def text(self, value: float | None) -> str:
        """The value with its unit; a dash if it does not apply."""
        return self.amount(value) + ("%" if self.percent else "") if is_measured(value) else "–"

    def amount(self, value: float) -> str:
        """The value, or a difference of two values, without its unit."""
        return f"{100 * value if self.percent else value:.{self.digits}f}"


def is_measured(value: float | None) -> TypeGuard[float]:
    """Whether a metric applies. Where it does not, evaluation files hold null and tables NaN."""
    return value is not None and math.isfinite(value)


def measure(evaluated: Evaluated, by_prompt: Mapping[str, Values] | None = None) -> Row:
    """Every metric of a model by its key, and under ``skills`` those that are measured by skill.

    Args:
        evaluated: what the model was evaluated on.
        by_prompt: what :func:`values_by_prompt` found of it; by default it is called.
    """
    values = values_by_prompt(evaluated) if by_prompt is None else by_prompt
    found: Row = {
        metric.key: metric.measure(evaluated) if metric.measure else _mean(values.get(metric.key))
        for metric in METRICS.values()
    }
    kept = [metric.key for metric in METRICS.values() if metric.by_skill]
    found["skills"] = {
        skill: {**{key: _mean(values.get(key), places) for key in kept}, "count": len(places)}
        for skill, places in evaluated.skills().items()
    }
    return found


def _mean(values: Values | None, places: Sequence[int] | None = None) -> float | None:
    """The mean of the values that are known, of all prompts or of those at some places."""
    if values is None:
        return None
    chosen = values if places is None else values[places]
    return mean(chosen[np.isfinite(chosen)])


def values_by_prompt(evaluated: Evaluated) -> dict[str, Values]:
    """The metrics of each prompt, (P,) in the order of the greedy responses, NaN for none.

    Those that no prompt has are left out.
    """
    found = {
        metric.key: np.fromiter(
            (math.nan if value is None else value for value in metric.by_prompt(evaluated)),
            np.float64,
        )
        for metric in METRICS.values()
        if metric.by_prompt is not None
    }
    return {key: values for key, values in found.items() if np.isfinite(values).any()}


def intervals(by_prompt: Mapping[str, Values]) -> dict[str, Interval]:
    """The 95% interval of each metric that has one, by a bootstrap over the prompts."""
    found = {key: mean_interval(values) for key, values in by_prompt.items()}
    return {key: ends for key, ends in found.items() if ends is not None}


def in_text(rows: Sequence[Row]) -> list[Metric]:
    """The columns of a table of text about some evaluations.

    The teacher's mean reward is the first of them where no response can be right or wrong.
    """
    judged = any(is_measured(row.get("greedy_accuracy")) for row in rows)
    return [
        metric
        for metric in METRICS.values()
        if (not metric.detail or (metric.key == TEACHER_REWARD and not judged))
        and any(is_measured(row.get(metric.key)) for row in rows)
    ]


def is_headline(metric: Metric, rows: Sequence[Row]) -> bool:
    """Whether a metric has a tile; the teacher's mean reward has one where no accuracy has."""
    judged = any(is_measured(row.get("greedy_accuracy")) for row in rows)
    return metric.headline and not (metric.key == TEACHER_REWARD and judged)


def _lengths(evaluated: Evaluated) -> Iterator[float]:
    return (len(row["completion_ids"][0]) for row in evaluated.greedy)


def _sampling(name: str) -> Callable[[Evaluated], float | None]:
    return lambda evaluated: evaluated.sampling.get(f"completions/{name}")


def _each(pair: str, name: str) -> Callable[[Evaluated], Iterable[float | None]]:
    def by_prompt(evaluated: Evaluated) -> Iterable[float | None]:
        rewards = getattr(evaluated, pair)
        return rewards.by_prompt(name) if rewards else []

    return by_prompt


TEACHER_REWARD = "teacher_reward"

# In the order of the columns of every table.
METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "greedy_accuracy",
            "Greedy accuracy",
            heading="right, greedy",
            narrow="right\ngreedy",
            percent=True,
            digits=1,
            better=1,
            headline=True,
            by_skill=True,
            by_prompt=lambda evaluated: accuracy_by_prompt(evaluated.greedy, evaluated.rule),
            picture="accuracy",
            curve="greedy",
        ),
        Metric(
            "sampled_accuracy",
            "Sampled accuracy",
            heading="right, sampled",
            narrow="right\nsampled",
            percent=True,
            digits=1,
            better=1,
            headline=True,
            by_skill=True,
            by_prompt=lambda evaluated: accuracy_by_prompt(evaluated.sampled, evaluated.rule),
            picture="accuracy",
            curve="sampled",
        ),
        Metric(
            TEACHER_REWARD,
            "Teacher's reward",
            heading="teacher's reward, fresh samples",
            narrow="teacher's\nreward",
            better=1,
            headline=True,
            detail=True,
            by_prompt=Evaluated.teacher_rewards,
            picture="teacher-reward",
            curve="teacher's reward",
        ),
        Metric(
            "kendall_tau",
            "Kendall τ",
            heading="tau, fixed groups",
            narrow="tau\nfixed",
            better=1,
            headline=True,
            by_prompt=_each("fixed", "kendall_tau"),
            picture="agreement",
            curve="τ, fixed groups",
        ),
        Metric(
            "top1",
            "Top-1",
            heading="top-1, fixed groups",
            narrow="top-1\nfixed",
            percent=True,
            digits=1,
            better=1,
            by_prompt=_each("fixed", "top1"),
            picture="agreement",
        ),
        Metric(
            "fresh_kendall_tau",
            "τ, fresh samples",
            heading="tau, fresh samples",
            narrow="tau\nfresh",
            better=1,
            by_prompt=_each("fresh", "kendall_tau"),
            picture="agreement",
            curve="τ, fresh samples",
        ),
        Metric(
            "fresh_top1",
            "Top-1, fresh",
            heading="top-1, fresh samples",
            narrow="top-1\nfresh",
            percent=True,
            digits=1,
            better=1,
            by_prompt=_each("fresh", "top1"),
            picture="agreement",
        ),
        Metric(
            "ppd_loss",  # the configured loss, any of them: the files of runs have this key
            "Loss",
            heading="loss, fixed groups",
            narrow="loss\nfixed",
            better=-1,
            headline=True,
            by_prompt=lambda evaluated: evaluated.losses,
            picture="heldout-loss",
            curve="held-out loss",
        ),
        Metric(
            "mean_length",
            "Mean length",
            heading="mean tokens",
            narrow="mean\ntokens",
            digits=1,
            by_prompt=_lengths,
        ),
        Metric(
            "duplicate_ratio",
            "Duplicates",
            _sampling("duplicate_ratio"),
            percent=True,
            digits=1,
            detail=True,
            picture="shares",
            curve="duplicates",
        ),
        Metric(
            "clipped_ratio",
            "Cut off",
            _sampling("clipped_ratio"),
            percent=True,
            digits=1,
            better=-1,
            detail=True,
            picture="shares",
            curve="cut off at the limit",
        ),
    )
}
