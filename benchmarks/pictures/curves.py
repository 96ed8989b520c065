"""Curves: time above memory, over the budget to the left and the number of rows to the right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.contestants import NAIVE, OURS, OURS_BUDGET_0
from benchmarks.pictures.style import COLOURS, over_grid
from benchmarks.records import Cases, Record, ran


def _budget(record: Record) -> float:
    return record["budget"] / 2**20


def _rows(record: Record) -> float:
    return record["shape"]["M"]


def draw_curves(cases: Cases) -> plt.Figure:
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex="col")
    measured = ran(cases)
    over_budget = [record for record in measured if record["curve"] == "budget"]
    over_rows = [record for record in measured if record["curve"] == "M"]
    _curve(axes[:, 0], over_budget, _budget, "budget as given")
    identity = {"slope": 1, "color": COLOURS[NAIVE], "linestyle": ":", "label": "the budget"}
    axes[1, 0].axline((0, 0), **identity)
    _curve(axes[:, 1], over_rows, _rows, 'budget "auto"')
    for axis in axes[:, 1]:
        _both_logarithmic(axis, sorted({_rows(record) for record in over_rows}))
    first = measured[0]["shape"]
    axes[1, 0].set_xlabel(f"memory_budget, MiB (M={over_budget[0]['shape']['M']:,})")
    axes[1, 1].set_xlabel("rows, M")
    axes[0, 0].set_ylabel(f"ms, forward+backward, D={first['D']:,} V={first['V']:,}")
    axes[1, 0].set_ylabel("MiB beyond inputs and gradients")
    for axis in axes.flat:
        if axis.get_yscale() == "linear":
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        over_grid(axis)
    return figure


def _curve(axes: Any, records: list[Record], x: Callable[[Record], float], ours: str) -> None:
    """Time on the first axis and memory on the second, over ``x``; ``ours`` labels our line."""
    for name, label, style, alpha in (
        (OURS, ours, "-o", 1.0),
        (OURS_BUDGET_0, "budget 0", "--s", 0.55),
    ):
        points = sorted(
            (x(record), record["median_ms"], record["peak_bytes"] / 2**20)
            for record in records
            if record["contestant"] == name
        )
        if points:
            places, *figures = zip(*points, strict=True)
            for axis, values in zip(axes, figures, strict=True):
                axis.plot(places, values, style, color=COLOURS[OURS], alpha=alpha, label=label)


def _both_logarithmic(axis: Axes, ticks: list[float]) -> None:
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(ticks, minor=False)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (
        axis.xaxis.set_major_formatter,
        axis.yaxis.set_major_formatter,
        axis.yaxis.set_minor_formatter,
    ):
        set_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
