"""Bars: time and memory as multiples of naive PyTorch's."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks.contestants import NAIVE
from benchmarks.pictures.style import colours_of, without_frame
from benchmarks.records import Cases, Record, ran

WIDEST = 3.0  # multiple of naive at which a bar is cut off


def draw_bars(cases: Cases) -> plt.Figure:
    """A group of bars for each case, a bar for each contestant."""
    shown = {label: [r for r in records if r["status"] == "ok"] for label, records in cases.items()}
    colours = colours_of(record["contestant"] for record in ran(cases))
    count = sum(len(records) + 1 for records in shown.values())
    size = (12, 1.6 + 0.21 * count)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for label, records in shown.items():
        _bars(axes, place, records, colours)
        ticks.append((place + (len(records) - 1) / 2, _wrap(label)))
        place += len(records) + 1
    for axis, title in zip(axes, ("time", "memory beyond inputs and results"), strict=True):
        _ratio_axis(axis, f"{title}\nas a multiple of naive PyTorch's")
    axes[0].set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes[0].margins(y=0.01)
    axes[0].invert_yaxis()
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, texts = axis.get_legend_handles_labels()
        entries |= dict(zip(texts, handles, strict=True))
    place_below: dict[str, Any] = {"loc": "outside lower center", "ncols": 5}
    figure.legend(entries.values(), entries.keys(), **place_below, fontsize=8, frameon=False)
    return figure


def _bars(axes: Any, place: float, records: list[Record], colours: dict[str, str]) -> None:
    """The bars of one case, from ``place`` on: time on the first axis, memory on the second."""
    naive = next((record for record in records if record["contestant"] == NAIVE), None)
    for offset, record in enumerate(records):
        style = {
            "height": 0.9,
            "color": colours[record["contestant"]],
            "label": record["contestant"],
            "hatch": None if record["same_job"] else "///",
        }
        if record["ratio_to_naive"]:
            _bar(axes[0], place + offset, record["ratio_to_naive"], style)
        if naive and naive["peak_bytes"]:
            _bar(axes[1], place + offset, record["peak_bytes"] / naive["peak_bytes"], style)


def _bar(axis: Axes, place: float, ratio: float, style: dict[str, Any]) -> None:
    """A bar with its number, cut off so that one slow contestant does not flatten the others."""
    end = min(ratio, WIDEST)
    axis.barh(place, end, **style)
    right_of_it: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    axis.annotate(f"{ratio:.2g}", (end, place), **right_of_it, fontsize=7)


def _ratio_axis(axis: Axes, title: str) -> None:
    axis.set_xlim(left=0)
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    without_frame(axis)


def _wrap(label: str) -> str:
    job, shape, *rest = label.split(", ")
    return f"{job}, {shape}\n{', '.join(rest)}"
