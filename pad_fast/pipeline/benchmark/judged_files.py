"""Two answer files before a judge: their matches, the comparison, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pad_fast.evaluation.benchmarks.answer_check import AnswerFile, check_answers
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS, AnswerForm, Benchmark
from pad_fast.evaluation.benchmarks.comparison import Comparison, compare
from pad_fast.evaluation.benchmarks.records import Question
from pad_fast.files.checksums import ends_hash
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.benchmark.folder import BenchmarkFolder
from pad_fast.pipeline.benchmark.judge import (
    NOT_COMPARABLE,
    Judge,
    Match,
    judge_matches,
    turn_matches,
)
from pad_fast.terminal import console as plain_console
from pad_fast.terminal import plain_table, show_table


def benchmark_of(form: AnswerForm) -> Benchmark:
    """The benchmark whose answers have a form."""
    return next(b for b in BENCHMARKS.values() if form in b.forms.values())


def read_matches(
    model: Path, baseline: Path, questions: Sequence[Question] | None = None
) -> tuple[AnswerFile, AnswerFile, list[Match]]:
    """The matches of two answer files.

    Args:
        model, baseline: answer files of one benchmark, to the same questions.
        questions: those that were asked. They may be left out for AlpacaEval and for the newer
            form of Arena-Hard, whose rows hold them; there is no comparison by category then.

    Raises:
        ValueError: a file is wrong, they answer different questions, or questions are needed.
    """
    mine, other = check_answers(model, questions), check_answers(baseline, questions)
    if benchmark_of(mine.form) is not benchmark_of(other.form):
        raise ValueError(f"{baseline} answers {other.form.title}, and {model} {mine.form.title}")
    if not benchmark_of(mine.form).judged:
        raise ValueError(f"{model}: GSM8K needs no judge, its answers are right or wrong")
    turns, others = mine.turns(), other.turns()
    if turns.keys() != others.keys():
        only = sorted(map(str, turns.keys() ^ others.keys()))
        raise ValueError(
            f"{baseline} and {model} answer different questions: {len(only)} are in one of them "
            f"only, such as {only[0]:.60}; give questions and limit that both were asked with"
        )
    asked = {_key(mine.form, q): q for q in questions} if questions else _own_questions(mine)
    matches = [
        match
        for key, answers in turns.items()
        for match in turn_matches(
            asked[key].id, asked[key].category, asked[key].turns, answers, others[key]
        )
    ]
    return mine, other, matches


def _key(form: AnswerForm, question: Question) -> Any:
    return question.turns[0] if form.key == "instruction" else question.id


def _own_questions(file: AnswerFile) -> dict[Any, Question]:
    """The questions that the rows themselves hold."""
    found = {}
    for _, row in file.rows:
        key = row[file.form.key]
        if file.form.key == "instruction":
            found[key] = Question(key, str(row.get("dataset") or ""), (key,))
        elif "messages" in row:
            found[key] = Question(key, "", (row["messages"][-2]["content"],))
        else:
            raise ValueError(
                f"questions: needed, since {file.path} holds answers to {file.form.title} without "
                "the questions"
            )
    return found


def judge_files(
    judge: Judge,
    files: tuple[AnswerFile, AnswerFile],
    matches: Sequence[Match],
    root: Path,
    *,
    margin: float = 0.0,
    shard_size: int = 64,
    quiet: bool = False,
) -> Row:
    """Compare two answer files, and write ``result.json`` into ``root``.

    Args:
        judge: who decides.
        files: the model's and the baseline's.
        matches: of their answers.
        root: the folder of the verdicts.
        margin: a probability this close to 1/2 is no verdict.
        shard_size: matches in a shard of verdicts.
        quiet: whether there is no progress bar.

    Returns:
        The judge, both models, and the comparisons over all and by category.
    """
    folder = BenchmarkFolder(root)
    mine, other = files
    with folder.locked():
        folder.begin(
            {
                "judge": [judge.name, judge.identity],
                "model": [mine.model, ends_hash([mine.path])],
                "baseline": [other.model, ends_hash([other.path])],
                "matches": len(matches),
                "shard_size": shard_size,
            }
        )
        games, facts = judge_matches(
            judge, matches, folder, shard_size, title=f"judge {mine.model}", quiet=quiet
        )
        result = {
            "benchmark": benchmark_of(mine.form).name,
            "model": mine.model,
            "baseline": other.model,
            "judge": judge.name,
            "judged_by": judge.identity,
            "note": NOT_COMPARABLE,
            "margin": margin,
            **facts,
            "comparisons": [comparison.row() for comparison in compare(games, margin)],
        }
        folder.write_result(result)
    return result


def print_comparisons(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table of a result of :func:`judge_files`."""
    console = console or plain_console()
    table = plain_table(
        HEADINGS,
        f"{result['model']} against {result['baseline']}, judged by {result['judge']}\n"
        f"({result['note']})",
    )
    for row in result["comparisons"]:
        table.add_row(*cells(Comparison.of(row)))
    show_table(console, table)
    console.print(
        "w/t/l: won in both orders, tied, lost in both. Win rate: wins and half of the ties. "
        "LC: at equal lengths. Flips: verdicts "
        "that change with the order. First: what the judge gives to whichever answer stands first "
        f"(50% is fair). The letters have {100 * result['letter_mass']:.0f}% of the judge's "
        f"probability; {result['unjudged']} matches are longer than its window.",
        style="dim",
    )


HEADINGS = ("games", "w/t/l", "win rate", "LC win rate", "flips", "kappa", "first")


def cells(found: Comparison) -> list[str]:
    """A line of the table: the category, and the numbers under :data:`HEADINGS`."""
    return [
        found.category,
        str(found.games),
        f"{found.wins}/{found.ties}/{found.losses}",
        found.win_rate.text(),
        found.length_controlled.text(),
        f"{100 * found.flips:.0f}%",
        "–" if found.kappa is None else f"{found.kappa:.2f}",
        f"{100 * found.first_place:.0f}%",
    ]
