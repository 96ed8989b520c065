"""Pictures as SVG, which take the reader's colours: light or dark.

No text from users or models is drawn: ``$`` would start a formula. The same numbers give the same
bytes.
"""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which can be told apart with any colour vision. Line styles, markers and
# hatches differ too.
TEACHER, BEFORE, AFTER, BASELINE, SECOND = "#3a3a3a", "#e69f00", "#0072b2", "#009e73", "#cc79a7"
INK, EDGE, GRID, ROUND, PAPER = "#1d2329", "#888888", "#e4e4e4", "#777777", "#fefefe"
BOX, HATCH = "#cfe3f1", "#9a6a00"
# What stands in a dark page for each colour that is drawn.
DARK = {
    TEACHER: "#d6d8da",
    BEFORE: "#f0b43c",
    AFTER: "#56b4e9",
    BASELINE: "#2fc49a",
    SECOND: "#e39cc3",
    INK: "#e6e8ea",
    EDGE: "#8a939b",
    GRID: "#353b41",
    ROUND: "#8f979e",
    PAPER: "#202327",
    BOX: "#1f4560",
    HATCH: "#f7d48c",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "grid.color": GRID,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pad-fast",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
FONTS = re.compile(r"(font: [\w .]*px) '[^;\"]*")


def draw(paint: Callable[[Axes], Any], *, xlabel: str, ylabel: str, legend: bool = True) -> str:
    """A picture of one panel, readable when it is scaled down to a phone's 2.4 inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if legend:
            handles, labels = axes.get_legend_handles_labels()
            # Three long labels would run out of the picture.
            columns = 3 if sum(map(len, labels[:3])) < 40 else 2
            figure.legend(
                handles,
                labels,
                loc="outside upper left",
                ncols=columns,
                fontsize=9,
                handlelength=2.6,
            )
        text = StringIO()
        # Without date and version of matplotlib the same run gives the same bytes.
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    return in_page_colours(text.getvalue())


def in_page_colours(svg: str) -> str:
    """An SVG whose colours are variables, with one value in light and one in dark pages."""
    svg = svg[svg.index("<svg") :]
    for place, colour in enumerate(DARK):
        svg = svg.replace(colour, f"var(--c{place})")
    svg = FONTS.sub(r"\1 sans-serif", svg)
    light = ";".join(f"--c{place}:{colour}" for place, colour in enumerate(DARK))
    dark = ";".join(f"--c{place}:{colour}" for place, colour in enumerate(DARK.values()))
    style = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    end = svg.index(">") + 1
    return f"{svg[:end]}<style>{style}</style>{svg[end:]}"
