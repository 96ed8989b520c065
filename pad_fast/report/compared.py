"""The methods that a run compared, side by side, and a sentence that says what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_fast.evaluation import model_names
from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.intervals import Values, difference_interval
from pad_fast.evaluation.reported_metrics import METRICS, TEACHER_REWARD, Metric, is_measured
from pad_fast.files.own_files import read_json
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.report.costs import read_costs
from pad_fast.report.run_records import read_by_prompt
from pad_fast.report.wording import worded

OWN = model_names.student(1)  # the student of the run's own method
SHOWN = ("greedy_accuracy", "sampled_accuracy", TEACHER_REWARD, "kendall_tau")
SCORES, ANSWERS = "The teacher only scores", "The teacher also answers"
COSTS = ("tokens\nread", "seconds")


@dataclass(frozen=True)
class Part:
    """Methods that read the same of the teacher, each a name and the cells of its row."""

    heading: str
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Comparison:
    """The table, in parts, and what it shows in words."""

    columns: list[str]
    parts: list[Part]
    words: str


@dataclass(frozen=True)
class Method:
    """A trained method: its name in tables, its evaluation, what it read, and what it cost."""

    title: str
    evaluation: Row
    by_prompt: dict[str, Values]
    is_told: bool  # whether it read answers of the teacher's
    cost: Row


def comparison(run_dir: Path) -> Comparison | None:
    """The comparison of a run folder; None if the run compares nothing, or has not come so far."""
    place = run_dir / "run.json"
    manifest = read_json(place) if place.exists() else {}
    config = manifest.get("config", {})
    methods = list(_methods(run_dir, config)) if config.get("compare") else []
    if len(methods) < 2:
        return None
    rows = [method.evaluation for method in methods]
    judged = any(is_measured(row.get(SHOWN[0])) for row in rows)
    metrics = [
        METRICS[key]
        for key in SHOWN
        if any(is_measured(row.get(key)) for row in rows) and not (judged and key == TEACHER_REWARD)
    ]
    if not metrics:
        return None
    judge = manifest.get("judge", "teacher")
    parts = [
        Part(worded(heading, judge), [(each.title, _cells(each, metrics)) for each in members])
        for heading, members in _by_part(methods)
    ]
    first = [
        (model_names.title(name), [*_values(row, metrics), *["–"] * len(COSTS)])
        for name in (model_names.TEACHER, model_names.BASE)
        if (row := _evaluation(run_dir, name))
    ]
    columns = [worded(metric.terminal_heading, judge) for metric in metrics]
    return Comparison([*columns, *COSTS], [Part("", first), *parts], in_words(methods, judge))


def in_words(methods: Sequence[Method], judge: str = "teacher") -> str:
    """Who is ahead in each part, by how much, and whether that may be chance.

    Args:
        methods: at least two.
        judge: who scored.
    """
    key = next(
        key
        for key in (SHOWN[0], TEACHER_REWARD, "kendall_tau")
        if all(is_measured(method.evaluation.get(key)) for method in methods)
    )
    metric, sentences, leaders = METRICS[key], [], []
    for heading, members in _by_part(methods):
        ranked = sorted(members, key=lambda each: each.evaluation[key], reverse=True)
        leaders.append(ranked[0])
        value = metric.text(ranked[0].evaluation[key])
        ahead = f"{ranked[0].title} is ahead ({metric.text_heading} {value}"
        ahead += f"; {_lead(metric, *ranked[:2])})" if len(ranked) > 1 else ")"
        sentences.append(f"{heading}: {ahead}.")
    if len(leaders) == 2:
        first, second = sorted(leaders, key=lambda each: each.evaluation[key], reverse=True)
        sentences.append(f"Of all, {first.title} is ahead: {_lead(metric, first, second)}.")
    return worded(" ".join(sentences), judge)


def _lead(metric: Metric, first: Method, second: Method) -> str:
    """How much the first is above the second, with the interval of the difference."""
    difference = first.evaluation[metric.key] - second.evaluation[metric.key]
    values = [method.by_prompt.get(metric.key) for method in (first, second)]
    ends = None
    if values[0] is not None and values[1] is not None and len(values[0]) == len(values[1]):
        ends = difference_interval(values[0], values[1])
    amount = metric.amount(difference)
    text = f"{amount} more than {second.title}" if difference else f"level with {second.title}"
    if ends is None:
        return text
    chance = "" if ends[0] > 0 else ", which may be chance"
    return f"{text}, 95% interval {' to '.join(map(metric.amount, ends))}{chance}"


def _methods(run_dir: Path, config: Row) -> Iterator[Method]:
    """The methods that are evaluated: the run's own, those it is compared with, the baseline."""
    compare: dict[str, Any] = config["compare"]
    loss = config.get("loss", "ppd")
    own = "PAD" if loss in ("ppd", "vpd") else LOSSES[loss].title
    answers = config.get("teacher_response", "none") != "none"
    usual = config.get("train_on", "all")
    known = [(OWN, own, "train", usual in ("all", "teacher"))]
    for name, options in compare.items():
        reads = options.get("train_on", usual)
        known.append((name, name, f"compare/{name}", reads in ("all", "teacher")))
    found = {row["title"].rpartition(" · ")[2]: row for row in read_costs(run_dir)}
    for name, title, phase, is_told in known:
        if evaluation := _evaluation(run_dir, name):
            table = run_dir / "evaluation" / f"{name}.parquet"
            by_prompt = read_by_prompt(table) if table.exists() else {}
            told = answers and is_told
            yield Method(title, evaluation, by_prompt, told, found.get(phase, {}))


def _evaluation(run_dir: Path, name: str) -> Row:
    path = run_dir / "evaluation" / f"{name}.json"
    return read_json(path) if path.exists() else {}


def _by_part(methods: Sequence[Method]) -> Iterator[tuple[str, list[Method]]]:
    for heading, is_told in ((SCORES, False), (ANSWERS, True)):
        if members := [method for method in methods if method.is_told == is_told]:
            yield heading, members


def _values(row: Row, metrics: Sequence[Metric]) -> list[str]:
    return [metric.text(row.get(metric.key)) for metric in metrics]


def _cells(method: Method, metrics: Sequence[Metric]) -> list[str]:
    tokens, seconds = method.cost.get("tokens"), method.cost.get("seconds")
    return [
        *_values(method.evaluation, metrics),
        "–" if tokens is None else f"{tokens:,}",
        "–" if seconds is None else f"{seconds:.0f}",
    ]
