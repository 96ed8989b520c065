"""The table that a run ends with: the student before and after, its teacher and the baseline."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pad_fast.evaluation import model_names
from pad_fast.evaluation.benchmarks.run_table import read_run_table
from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.reported_metrics import in_text
from pad_fast.files.own_files import read_json
from pad_fast.report.compared import Comparison, comparison
from pad_fast.report.wording import SAMPLED, worded
from pad_fast.terminal import console as plain_console
from pad_fast.terminal import plain_table, show_table


def print_table(root: Path, console: Console | None = None) -> None:
    """Print the evaluations of a run folder, a line for each model; nothing if there are none."""
    rows = [read_json(path) for path in (root / "evaluation").glob("*.json")]
    console = console or plain_console()
    if rows:
        manifest = root / "run.json"
        known = read_json(manifest) if manifest.exists() else {}
        words = known.get("judge", "teacher"), known.get("fixed_groups", SAMPLED)
        if (found := comparison(root)) is not None:
            _print_comparison(found, rows[0]["num_prompts"], console)
        else:
            _print_evaluations(rows, words, console)
    _print_benchmarks(root, console)


def _print_comparison(found: Comparison, prompts: int, console: Console) -> None:
    """Print the methods in parts, and below them what they show."""
    title = f"{prompts} held-out prompts; the same samples, scores and steps for each method"
    table = plain_table(found.columns, title)
    for part in found.parts:
        if part.heading:
            table.add_section()
            table.add_row(part.heading, style="bold")
        for name, cells in part.rows:
            table.add_row(f"  {name}" if part.heading else name, *cells)
    show_table(console, table)
    console.print(found.words)


def _print_evaluations(rows: list[Row], words: tuple[str, str], console: Console) -> None:
    columns = in_text(rows)
    headings = [worded(metric.terminal_heading, *words) for metric in columns]
    table = plain_table(headings, f"{rows[0]['num_prompts']} held-out prompts")
    for row in sorted(rows, key=lambda row: model_names.position(row["name"])):
        cells = [metric.text(row.get(metric.key)) for metric in columns]
        table.add_row(model_names.label(row["name"]), *cells)
    show_table(console, table)
    note = (
        "tau and top-1 compare the student's ranking of responses with the teacher's, on fixed "
        "groups (the base student's samples) and on fresh samples of the student itself."
    )
    console.print(worded(note, *words), style="dim")


def _print_benchmarks(root: Path, console: Console) -> None:
    """Print the table of the benchmarks, if there are any."""
    found = read_run_table(root)
    if found is None:
        return
    table = plain_table(found.columns, "Benchmarks")
    for name, cells in found.rows:
        table.add_row(model_names.label(name), *cells)
    show_table(console, table)
    for note in ("95% intervals in brackets.", *found.notes):
        console.print(note, style="dim")
