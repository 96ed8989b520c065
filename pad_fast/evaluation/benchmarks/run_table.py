"""The table of a run's benchmarks: a line for each model, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_fast.evaluation import model_names
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.evaluation.benchmarks.comparison import Rate
from pad_fast.files.own_files import read_json

FOLDER, JUDGED, RESULT = "benchmarks", "judged", "result.json"
NOTHING = "–"


@dataclass(frozen=True)
class RunTable:
    """What a run's models achieved.

    Args:
        columns: headings.
        rows: the name of a model, as :mod:`pad_fast.evaluation.model_names` has it, and its cells.
        notes: sentences that belong below the table.
    """

    columns: list[str]
    rows: list[tuple[str, list[str]]]
    notes: list[str]


def read_run_table(root: Path) -> RunTable | None:
    """The table of a run folder; None if it has no benchmarks.

    A share stands with its 95% interval: Wilson's for right answers, a bootstrap over questions for
    the verdicts of a judge.
    """
    found: dict[str, dict[str, str]] = {}
    notes: dict[str, None] = {}
    for path in sorted((root / FOLDER).glob(f"*/*/{RESULT}")):
        cells = found.setdefault(path.parts[-3], {})
        result, judged = read_json(path), path.parent / JUDGED / RESULT
        cells |= dict(_scores(result))
        if judged.exists():
            verdict = read_json(judged)
            cells |= dict(_verdicts(verdict))
            notes[_judge_note(verdict)] = None
        if "scored_by" in result:
            notes[_scored_note(result)] = None
    if not found:
        return None
    names = {name: None for cells in found.values() for name in cells}
    order = [name for each in BENCHMARKS.values() for name in names if name.startswith(each.title)]
    rows = [
        (model, [found[model].get(name, NOTHING) for name in order])
        for model in sorted(found, key=model_names.position)
    ]
    return RunTable(order, rows, list(notes))


def _scores(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    title = BENCHMARKS[result["benchmark"]].title
    for name, score in result.get("scores", {}).items():
        yield f"{title} {name}", Rate(score["value"], score["low"], score["high"]).text()
    if "scores" not in result:
        yield f"{title} answers", f"{result['questions']:,}"


def _verdicts(verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
    title, everything = BENCHMARKS[verdict["benchmark"]].title, verdict["comparisons"][0]
    yield f"{title} win rate", Rate(**everything["win_rate"]).text()
    yield f"{title} LC win rate", Rate(**everything["length_controlled"]).text()


def _judge_note(verdict: dict[str, Any]) -> str:
    return (
        f"Win rates are against {model_names.title(verdict['baseline']).lower()}, by the judge "
        f"{verdict['judge']}: {verdict['note']}. A judge that is the teacher may favour answers "
        "like its own. LC: at equal lengths."
    )


def _scored_note(result: dict[str, Any]) -> str:
    return (
        f"{BENCHMARKS[result['benchmark']].title}: {result['questions']:,} problems, "
        f"{result['shots']} shots as turns, with the chat template, by {result['scored_by']}."
    )
