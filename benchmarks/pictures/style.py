"""Colours, axes and files of all pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.contestants import NAIVE, OURS

COLOURS = {OURS: "#c8442b", NAIVE: "#8a8f98"}
OTHERS = (
    "#2f6f9f", "#5b9f6b", "#b58a2a", "#7d5ba6", "#3f9d9b", "#a05a7a", "#6b6b2a", "#446688",
    "#8fb8de", "#a9cf8e", "#e3bd6a", "#c3a9dc", "#1f3d2b", "#e09cb5",
)  # fmt: skip


def save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def without_frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def over_grid(axis: Axes) -> None:
    """Grid, open frame and legend of a picture of lines."""
    axis.grid(alpha=0.3)
    without_frame(axis)
    axis.legend(fontsize=8, frameon=False)


def sign(figure: plt.Figure, device: str, run: str) -> None:
    figure.suptitle(f"{device}, {run[:10]}", fontsize=9, color="#555555", x=0.99, ha="right")


def level(axis: Axes, value: float, text: str) -> None:
    axis.axhline(value, color=COLOURS[NAIVE], linestyle="--", linewidth=1)
    at_left: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
    axis.annotate(text, (0.02, value), **at_left, fontsize=8, color="#555555")


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each contestant, in the order in which they are first met."""
    colours = dict(COLOURS)
    for name in names:
        colours.setdefault(name, OTHERS[(len(colours) - len(COLOURS)) % len(OTHERS)])
    return colours
