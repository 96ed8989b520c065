"""Figures of records as tables show them, and tables in Markdown."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, or a power of ten for very small and very large numbers."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def mebibytes(value: int | None) -> str:
    if value is None:
        return "–"
    size = value / 2**20
    return f"{size:,.0f}" if size >= 10 else f"{size:.2g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def times(value: float | None) -> str:
    """A ratio; a small one as a fraction."""
    return "–" if value is None else f"{number(value)}×" if value > 0.1 else f"1/{1 / value:,.0f}"


def without_bars(text: str | None) -> str:
    """A text that does not end a cell of a table."""
    return (text or "").replace("|", "/")


def markdown(rows: list[list[str]]) -> str:
    """A table from its rows, the first two being the head and the line below it."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
