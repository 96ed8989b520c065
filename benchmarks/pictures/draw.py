"""Drawing all that has records."""

from __future__ import annotations

from pathlib import Path

from benchmarks.evidence.pictures import draw_evidence
from benchmarks.pictures.bars import draw_bars
from benchmarks.pictures.curves import draw_curves
from benchmarks.pictures.listwise import draw_listwise
from benchmarks.pictures.studies import STUDIES
from benchmarks.pictures.style import save, sign
from benchmarks.records import Cases, is_listwise, last_run, load, newest
from benchmarks.suites import SUITES


def draw_all(results: Path) -> list[Path]:
    """Draw the newest records of every suite and study; the files that were written."""
    written = []
    for suite in SUITES.values():
        if suite.is_recorded and suite.table != "trainers":
            written += draw(suite.name, newest(load(results, suite.name)), results)
    for name, plot in STUDIES.items():
        if records := last_run(results, name):
            written.append(save(plot(records), results / f"{name}.png"))
    if (figure := draw_evidence(load(results, "evidence"))) is not None:
        written.append(save(figure, results / "evidence.png"))
    return written


def draw(suite: str, runs: dict[tuple[str, str], Cases], folder: Path) -> list[Path]:
    """Three pictures for each device, as far as a suite has cases for them.

    Tokens: time and memory of the other jobs as bars. Memory: the curves over budget and rows.
    Listwise: time of the listwise losses over N.
    """
    written = []
    for place, ((device, run), cases) in enumerate(runs.items()):
        curves, listwise, others = by_picture(cases)
        for name, chosen, plot in (
            ("tokens", others, draw_bars),
            ("memory", curves, draw_curves),
            ("listwise", listwise, draw_listwise),
        ):
            if chosen:
                figure = plot(chosen)
                sign(figure, device, run)
                suffix = f"-{place}" if place else ""
                written.append(save(figure, folder / f"{suite}-{name}{suffix}.png"))
    return written


def by_picture(cases: Cases) -> tuple[Cases, Cases, Cases]:
    """The cases that are points of curves, listwise losses, and all others."""
    curves: Cases = {}
    listwise: Cases = {}
    others: Cases = {}
    for label, records in cases.items():
        first = records[0]
        chosen = curves if first.get("curve") else listwise if is_listwise(first) else others
        chosen[label] = records
    return curves, listwise, others
