"""What the pictures show, drawn as SVG."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.reported_metrics import is_measured
from pad_fast.report.run_records import Floats
from pad_fast.report.svg import (
    AFTER,
    BASELINE,
    BEFORE,
    BOX,
    HATCH,
    INK,
    PAPER,
    ROUND,
    SECOND,
    TEACHER,
    draw,
)
from pad_fast.report.wording import worded

LINES = ((AFTER, "-", "o"), (BEFORE, "--", "s"), (SECOND, "-.", "^"), (BASELINE, ":", "D"))
APART = 0.05  # distance of the error bars of two curves, in rounds


def training_curves(rows: Sequence[Row], lines: Mapping[str, str], ylabel: str) -> str:
    """What training logged, over the optimizer's steps of all rounds.

    Args:
        rows: the lines of metrics.jsonl, in order.
        lines: the logged name of each curve, with its label.
        ylabel: the label of the vertical axis.
    """
    steps, starts = global_steps(rows)

    def paint(axes: Axes) -> None:
        for (key, label), (color, style, _) in zip(lines.items(), cycle(LINES), strict=False):
            kept = [
                (x, row[key])
                for x, row in zip(steps, rows, strict=True)
                if is_measured(row.get(key))
            ]
            x, y = (np.array(values, dtype=float) for values in zip(*kept, strict=True))
            window = max(1, len(y) // 20)
            if window > 1:
                axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(x, running_mean(y, window), style, color=color, label=label, linewidth=1.8)
        for start in starts[1:]:
            axes.axvline(start, color=ROUND, linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return draw(
        paint,
        xlabel="optimizer step" + (" (vertical line: a new round)" if len(starts) > 1 else ""),
        ylabel=ylabel,
    )


def round_curves(
    students: Sequence[Row],
    lines: Mapping[str, str],
    ylabel: str,
    *,
    levels: Mapping[str, tuple[float, str]],
    percent: bool = False,
) -> str:
    """Metrics over the rounds.

    Args:
        students: the evaluations of the students, in order.
        lines: the key of each metric, with its curve's label.
        ylabel: the label of the vertical axis.
        levels: the label of each horizontal line, with its height and colour.
        percent: whether values are shares, to be drawn in percent.
    """
    scale = 100.0 if percent else 1.0

    def paint(axes: Axes) -> None:
        looks = zip(lines.items(), cycle(LINES), strict=False)
        for place, ((key, label), (color, style, marker)) in enumerate(looks):
            kept = [row for row in students if is_measured(row.get(key))]
            values = scale * np.array([row[key] for row in kept])
            axes.errorbar(
                [row["round"] + APART * (place - (len(lines) - 1) / 2) for row in kept],
                values,
                yerr=_errors(kept, key, scale),
                capsize=2.5,
                elinewidth=1.0,
                linestyle=style,
                marker=marker,
                color=color,
                label=label,
                linewidth=1.8,
            )
        for label, (level, color) in levels.items():
            axes.axhline(
                scale * level,
                color=color,
                linewidth=1.4,
                linestyle=(0, (6, 2)) if color == TEACHER else ":",
                label=label,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.12)

    return draw(paint, xlabel="round (0: the base student)", ylabel=ylabel)


def _errors(rows: Sequence[Row], key: str, scale: float) -> Floats | None:
    """How far the 95% intervals of a metric reach, (2, rows); None where they are not known."""
    ends = [(row.get("intervals") or {}).get(key) for row in rows]
    if not any(ends):
        return None
    lengths = [
        (row[key] - low_high[0], low_high[1] - row[key]) if low_high else (0.0, 0.0)
        for row, low_high in zip(rows, ends, strict=True)
    ]
    return scale * np.maximum(np.array(lengths).T, 0.0)


def loss_histogram(before: Floats, after: Floats, ylabel: str, *, bound: float | None) -> str:
    """The losses of held-out prompts before and after. ``bound`` is the highest loss possible."""
    high = bound if bound is not None else float(np.quantile(np.concatenate([before, after]), 0.99))
    bins = np.linspace(0.0, max(high, 1e-6), 31).tolist()

    def paint(axes: Axes) -> None:
        clipped = {"before": np.clip(before, 0, bins[-1]), "after": np.clip(after, 0, bins[-1])}
        axes.hist(
            clipped["before"],
            bins,
            color=BEFORE,
            alpha=0.55,
            hatch="///",
            edgecolor=HATCH,
            linewidth=0.3,
            label="before",
        )
        axes.hist(
            clipped["after"], bins, histtype="step", color=AFTER, linewidth=2.0, label="after"
        )
        if bound is not None:
            value = "ln 2" if math.isclose(bound, math.log(2)) else f"{bound:.3g}"
            label = f"{value}, the highest value"
            axes.axvline(bound, color=TEACHER, linewidth=1.2, linestyle="--", label=label)

    return draw(
        paint,
        xlabel=ylabel + ("" if bound is not None else " (the highest 1% are in the last bar)"),
        ylabel="held-out prompts",
    )


def length_boxes(lengths: Mapping[int, NDArray[np.int64]]) -> str:
    """Lengths of each round's samples: the box holds the middle half, the whiskers 90%."""

    def paint(axes: Axes) -> None:
        axes.boxplot(
            list(lengths.values()),
            positions=list(lengths),
            whis=(5, 95),
            showfliers=False,
            widths=0.5,
            patch_artist=True,
            boxprops={"facecolor": BOX, "edgecolor": AFTER},
            whiskerprops={"color": INK},
            capprops={"color": INK},
            medianprops={"color": INK, "linewidth": 1.6},
        )
        axes.grid(axis="x", visible=False)
        axes.set_ylim(bottom=0)

    return draw(paint, xlabel="round", ylabel="tokens of a sampled response", legend=False)


def first_places(probabilities: Mapping[str, Floats], judge: str = "teacher") -> str:
    """Bars of the probability of being ranked first, side by side for each response.

    Args:
        probabilities: for any of "teacher", "before" and "after", the probability of each response.
        judge: the word for the teacher.
    """
    looks = {"teacher": (TEACHER, ""), "before": (BEFORE, "///"), "after": (AFTER, "")}

    def paint(axes: Axes) -> None:
        width = 0.8 / len(probabilities)
        for position, (name, values) in enumerate(probabilities.items()):
            color, hatch = looks[name]
            x = np.arange(1, len(values) + 1) + (position - (len(probabilities) - 1) / 2) * width
            axes.bar(
                x,
                values,
                width,
                color=color,
                hatch=hatch,
                edgecolor=PAPER,
                linewidth=0.5,
                label=worded(name, judge),
            )
        axes.set_ylim(0, 1)
        axes.set_xticks(range(1, len(values) + 1))
        axes.grid(axis="x", visible=False)

    xlabel = worded("response, in the teacher's order", judge)
    return draw(paint, xlabel=xlabel, ylabel="probability of first place")


def global_steps(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Steps that count on through the rounds, and the step after which each round starts."""
    steps: list[int] = []
    starts: list[int] = []
    offset = 0
    for _, members in groupby(rows, key=lambda row: row.get("round")):
        own = [row["step"] for row in members]
        if steps and own[0] <= steps[-1] - offset:  # this round's trainer counts from 1 again
            offset = steps[-1]
        starts.append(steps[-1] if steps else 0)
        steps += [offset + step for step in own]
    return steps, starts


def running_mean(y: Floats, window: int) -> Floats:
    """For each value the mean over the window around it, which is cut off at the ends."""
    total = np.cumsum(np.insert(y, 0, 0.0))
    place = np.arange(len(y))
    low, high = np.maximum(place - window // 2, 0), np.minimum(place + window // 2 + 1, len(y))
    return (total[high] - total[low]) / (high - low)
