"""The page's tables, as texts ready to show."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pad_fast.evaluation import model_names
from pad_fast.evaluation.agreement import TIE
from pad_fast.evaluation.benchmarks.run_table import read_run_table
from pad_fast.evaluation.choice import ChoiceEffect
from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.intervals import Interval, difference_interval
from pad_fast.evaluation.reported_metrics import METRICS, Metric, is_headline, is_measured
from pad_fast.report.run_records import FixedGroup, Floats, RunRecords
from pad_fast.report.wording import worded
from pad_fast.secret_values import is_secret


def number(value: float, digits: int) -> str:
    """A number with so many decimals, and a minus sign in place of a hyphen."""
    return _typeset(f"{value:.{digits}f}")


def shown(metric: Metric, value: float | None) -> str:
    """A metric's value with its unit; a dash if it does not apply."""
    return _typeset(metric.text(value))


def change(metric: Metric, value: float | None, base: float | None) -> tuple[str, str]:
    """The signed difference from a base, and the CSS class for its colour; "" where unknown."""
    if value is None or base is None or not math.isfinite(value - base):
        return "", ""
    text = metric.amount(value - base)
    if float(text) == 0:
        return "±0", ""
    worth = metric.better * (value - base)
    css = "better" if worth > 0 else "worse" if worth < 0 else ""
    return _typeset(text if text.startswith("-") else "+" + text), css


def _typeset(text: str) -> str:
    return text.replace("-", "−")


def interval(metric: Metric, ends: Sequence[float] | None, *, signed: bool = False) -> str:
    """A 95% interval with the metric's unit; "" if it is not known."""
    if ends is None:
        return ""
    low, high = (metric.amount(value) for value in ends)
    if signed:
        low, high = (text if text.startswith("-") else f"+{text}" for text in (low, high))
    return _typeset(f"{low} to {high}")


def interval_of_change(run: RunRecords, name: str, metric: Metric) -> Interval | None:
    """The 95% interval of a model's mean difference from the base student, prompt by prompt."""
    base = run.by_prompt.get(run.base.get("name", ""), {}).get(metric.key)
    values = run.by_prompt.get(name, {}).get(metric.key)
    if base is None or values is None or len(base) != len(values):
        return None
    return difference_interval(values, base)


def headlines(run: RunRecords) -> list[dict[str, str]]:
    """The tiles at the top of the page: a metric before and after, and the teacher's."""
    if len(run.students) < 2:
        return []
    last, teacher = run.students[-1], run.teacher or {}
    tiles = []
    for metric in METRICS.values():
        before, after = run.base.get(metric.key), last.get(metric.key)
        if is_headline(metric, run.students) and is_measured(before) and is_measured(after):
            text, css = change(metric, after, before)
            ends = interval_of_change(run, last["name"], metric)
            taught = teacher.get(metric.key)
            tiles.append(
                {
                    "label": worded(metric.label, run.judge),
                    "before": shown(metric, before),
                    "after": shown(metric, after),
                    "change": text,
                    "css": css if ends is None or ends[0] * ends[1] > 0 else "soft",
                    "interval": interval(metric, ends, signed=True),
                    "teacher": shown(metric, taught) if is_measured(taught) else "",
                }
            )
    return tiles


def before_after(run: RunRecords) -> dict[str, Any]:
    """Every metric that was measured, of every model, with its difference from the base student.

    Each cell is a value, its 95% interval, the difference and the CSS class of that.
    """
    rows = [row for row in (run.teacher, *run.students, *run.baselines) if row]
    columns = [
        metric
        for metric in METRICS.values()
        if any(is_measured(row.get(metric.key)) for row in rows)
    ]
    body = []
    for row in rows:
        base = run.base if _is_compared(row) else {}
        ends = row.get("intervals") or {}
        cells = [
            (
                shown(metric, row.get(metric.key)),
                interval(metric, ends.get(metric.key)),
                *_sure_change(run, row, metric, base.get(metric.key)),
            )
            for metric in columns
        ]
        body.append({"label": model_names.title(row["name"]), "cells": cells})
    return {
        "columns": [(worded(metric.label, run.judge), metric.better) for metric in columns],
        "rows": body,
        "has_intervals": any(cell[1] for row in body for cell in row["cells"]),
    }


def _sure_change(run: RunRecords, row: Row, metric: Metric, base: float | None) -> tuple[str, str]:
    """A difference as :func:`change` has it, in grey where it may be chance."""
    text, css = change(metric, row.get(metric.key), base)
    ends = interval_of_change(run, row["name"], metric) if css else None
    return text, css if ends is None or ends[0] * ends[1] > 0 else "soft"


def validation(run: RunRecords) -> dict[str, Any]:
    """What each round's student achieved on the validation prompts; empty if there are none."""
    if not run.validation:
        return {}
    first = run.validation[0]
    metric = METRICS.get(first["metric"], METRICS["teacher_reward"])
    rows = [
        {
            "label": model_names.title(model_names.student(row["round"])),
            "value": shown(metric, row["value"]),
            "interval": interval(metric, row.get("interval")),
            "best": row["round"] == run.best_round,
        }
        for row in run.validation
    ]
    return {"rows": rows, "label": worded(metric.label, run.judge), "prompts": first["num_prompts"]}


def side_by_side(run: RunRecords, group: FixedGroup) -> list[tuple[str, str]]:
    """The greedy responses to a prompt, with their models: before, after, teacher, baselines."""
    last = [row["name"] for row in run.students[1:]][-1:]
    names = [model_names.BASE, *last, model_names.TEACHER, *(row["name"] for row in run.baselines)]
    return [(model_names.title(name), group.greedy[name]) for name in names if name in group.greedy]


def skills(run: RunRecords) -> dict[str, Any]:
    """Accuracy for each skill: teacher, base student, last student, baselines."""
    chosen = (run.teacher, *run.students[:1], *run.students[1:][-1:], *run.baselines)
    rows = [row for row in chosen if row and row.get("skills")]
    body = []
    for skill in sorted({skill for row in rows for skill in row["skills"]}):
        base = (run.base.get("skills") or {}).get(skill, {})
        found = [row["skills"].get(skill, {}) for row in rows]
        cells = [
            _skill_cell(scores, base if _is_compared(row) else {})
            for row, scores in zip(rows, found, strict=True)
        ]
        count = max(scores.get("count") or 0 for scores in found)
        body.append({"skill": skill, "count": count, "cells": cells})
    return {"columns": [model_names.title(row["name"]) for row in rows], "rows": body}


def _skill_cell(scores: Row, base: Row) -> tuple[str, str, str, str]:
    """Greedy accuracy, its difference from the base's with its CSS class, sampled accuracy."""
    greedy, sampled = METRICS["greedy_accuracy"], METRICS["sampled_accuracy"]
    value = scores.get(greedy.key)
    difference = change(greedy, value, base.get(greedy.key))
    return shown(greedy, value), *difference, shown(sampled, scores.get(sampled.key))


def _is_compared(row: Row) -> bool:
    """Whether the page shows a model's differences from the base student."""
    return row["name"] not in (model_names.TEACHER, model_names.BASE)


def benchmarks(run_dir: Path) -> dict[str, Any]:
    """What the run's models achieved in benchmarks; empty if there are none."""
    found = read_run_table(run_dir)
    if found is None:
        return {}
    rows = [(model_names.title(name), cells) for name, cells in found.rows]
    return {"columns": found.columns, "rows": rows, "notes": found.notes}


def order(group: FixedGroup) -> list[int]:
    """The responses, the teacher's best first, masked ones last."""
    return sorted(
        range(len(group.teacher)),
        key=lambda i: (not math.isfinite(group.teacher[i]), -group.teacher[i], i),
    )


def _ranks(reward: Floats, live: Floats) -> list[str]:
    """1 for the best live response; tied ones share a rank; a dash for a masked response."""
    values = reward[live.astype(bool)]
    return [
        str(1 + int((values > value + TIE).sum())) if alive else "–"
        for value, alive in zip(reward, live, strict=True)
    ]


def group_table(group: FixedGroup) -> dict[str, Any]:
    """A prompt with its responses, their rewards and ranks, and the models' greedy responses."""
    live = np.isfinite(group.teacher).astype(np.float64)
    sides = [group.teacher, group.before] + ([group.after] if group.after is not None else [])
    ranks = [_ranks(reward, live) for reward in sides]
    rows = []
    for place, i in enumerate(order(group), 1):
        cells = [
            (number(reward[i], 3) if math.isfinite(reward[i]) else "–", rank[i])
            for reward, rank in zip(sides, ranks, strict=True)
        ]
        rows.append(
            {
                "place": place,
                "text": group.completions[i],
                "finish": group.finish_reasons[i],
                "cells": cells,
            }
        )
    return {
        "prompt": group.prompt,
        "answer": group.answer,
        "rows": rows,
        "has_after": group.after is not None,
    }


def choice(run: RunRecords) -> ChoiceEffect | None:
    """What multiple choice did to the rewards, as means over all shards that were scored."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in run.metrics:
        for key, value in row.items() if row["phase"] == "score" else ():
            if key.startswith("mcq/") and is_measured(value):
                found[key].append(value)
    return ChoiceEffect.logged({key: float(np.mean(values)) for key, values in found.items()})


def phases(run: RunRecords) -> dict[str, Any]:
    """What sampling and scoring logged: a row a number, a column a round, means over shards."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in run.metrics:
        if row["phase"] not in ("sample", "score"):
            continue
        for key, value in row.items():
            is_number = isinstance(value, int | float) and is_measured(value)
            if is_number and key not in ("round", "step"):
                found[key][row.get("round") or 0].append(value)
    rounds = sorted({number for columns in found.values() for number in columns})
    body = {
        key: [f"{np.mean(columns[number]):.4g}" if number in columns else "–" for number in rounds]
        for key, columns in found.items()
    }
    return {"rounds": rounds, "rows": body}


def details(run: RunRecords) -> dict[str, dict[str, str]]:
    """The manifest: long tables that stay folded."""
    tables: dict[str, dict[str, str]] = {"All settings": {}}
    for section, value in run.manifest.items():
        if section == "phases":  # a page written again is the same as the first
            value = {name: state for name, state in value.items() if name != "report"}
        title = "All settings" if section == "config" else section.replace("_", " ").capitalize()
        tables[title] = flat(value if isinstance(value, dict) else {section: value})
    return {title: rows for title, rows in tables.items() if rows}


def flat(tree: Row, prefix: str = "") -> dict[str, str]:
    """Dotted names and values. Access tokens are not shown, since a page is passed on."""
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            rows |= flat(value, f"{prefix}{key}.")
        elif is_secret(key) and value is not None:
            rows[prefix + key] = "(not shown)"
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows[prefix + key] = text
    return rows
