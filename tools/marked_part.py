"""A part of a document between two marks, which a command writes anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_part(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- plan:NAME -->`` and ``<!-- /plan:NAME -->``."""
    text = path.read_text(encoding="utf-8")
    first, last = f"<!-- plan:{name} -->\n", f"<!-- /plan:{name} -->"
    start, end = text.index(first) + len(first), text.index(last)
    path.write_text(text[:start] + "\n".join([*lines, ""]) + text[end:], encoding="utf-8")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]
