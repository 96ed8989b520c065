"""The table before and after that a run ends with."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pad_fast.pipeline.files import Row

# key, heading, decimals, in percent
COLUMNS = (
    ("greedy_accuracy", "right\ngreedy", 1, True),
    ("sampled_accuracy", "right\nsampled", 1, True),
    ("kendall_tau", "tau\nfixed", 3, False),
    ("top1", "top-1\nfixed", 1, True),
    ("fresh_kendall_tau", "tau\nfresh", 3, False),
    ("fresh_top1", "top-1\nfresh", 1, True),
    ("ppd_loss", "loss\nfixed", 3, False),
    ("mean_length", "mean\ntokens", 1, False),
)
NAMES = {"teacher": "teacher", "student-00": "student before", "seqkd": "SeqKD"}


def print_table(root: Path, console: Console | None = None) -> None:
    """Print what is in `evaluation/` of a run folder; nothing where there is nothing."""
    rows = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "evaluation").glob("*.json"))
    ]
    if not rows:
        return
    place = {"teacher": -1, "seqkd": 1 << 30}
    table = Table(
        title=f"{rows[0]['num_prompts']} held-out prompts",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    columns = [column for column in COLUMNS if any(row[column[0]] is not None for row in rows)]
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: place.get(row["name"], row["round"])):
        table.add_row(
            NAMES.get(row["name"], f"after round {row['round']}"),
            *(_cell(row, *column) for column in columns),
        )
    console = console or Console()
    console.print(table)
    console.print(
        "tau and top-1: the student's ranking of responses against the teacher's, on fixed groups (the base student's samples) and on "
        "fresh samples of the student itself.",
        style="dim",
    )


def _cell(row: Row, key: str, _: str, decimals: int, percent: bool) -> str:
    value = row[key]
    if value is None:
        return "–"
    return f"{100 * value:.{decimals}f}%" if percent else f"{value:.{decimals}f}"
