"""The picture of the study: every setting, method and budget, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.evidence.cells import STEPS, TOKENS
from benchmarks.evidence.findings import studied
from benchmarks.evidence.methods import BASE
from benchmarks.evidence.results import Results, comparable, matrix, scores_of
from benchmarks.evidence.statistics import interval
from benchmarks.evidence.tables import heading, title
from benchmarks.records import Record

COLUMNS = 2
GREY, BLUE, RED = "#8a8f98", "#2f6f9f", "#c8442b"  # the start, methods, composed methods


def draw_evidence(records: Sequence[Record]) -> plt.Figure | None:
    """A panel for each setting that was measured; None if there is none.

    A dot is a method's mean at equal steps, a ring at equal tokens, each with its 95% interval;
    of methods on the runs that they share.
    Settings that only vary the groups (g) stand in the tables alone.
    """
    shown = [each for each in studied(records) if not each.setting.name.startswith("g-")]
    if not shown:
        return None
    rows = math.ceil(len(shown) / COLUMNS)
    most = max(len(comparable(results, STEPS)) for results in shown)
    size = (11, rows * (1.0 + 0.26 * most))
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, layout="constrained", squeeze=False)
    for axis, results in zip(axes.flat, shown, strict=False):
        _panel(axis, results)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.supxlabel("dot: equal steps, ring: equal tokens; bars: 95% intervals", fontsize=8)
    return figure


def _panel(axis: Axes, results: Results) -> None:
    records = {budget: comparable(results, budget) for budget in (STEPS, TOKENS)}
    methods = list(reversed(records[STEPS]))
    measure = scores_of(results.setting)[0]
    scale = 100 if measure.endswith("right") else 1
    for place, name in enumerate(methods):
        colour = GREY if name == BASE else RED if "composed" in title(name) else BLUE
        for budget, fill in ((STEPS, colour), (TOKENS, "none")):
            values = matrix(records[budget].get(name, {}), measure)
            if values is not None:
                found = interval(values)
                mean, low, high = (scale * value for value in (found.mean, found.low, found.high))
                bars = [[mean - low], [high - mean]]
                shift = 0.12 if budget == STEPS else -0.12
                axis.errorbar(
                    [mean],
                    [place + shift],
                    xerr=bars,
                    color=colour,
                    fmt="o",
                    markersize=4,
                    markerfacecolor=fill,
                )
    axis.set_yticks(range(len(methods)), [title(name) for name in methods], fontsize=7)
    name = f"{results.setting.title}: {heading(results.setting, measure)}"
    axis.set_title(name, fontsize=9, loc="right")  # beside it is room for the names of the methods
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
