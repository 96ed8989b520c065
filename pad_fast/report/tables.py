"""The page's tables, as texts ready to show."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from pad_fast.report.folder import Floats, Group, Row, Run, finite

TIE = 1e-5  # nats per token, the tolerance of the rankings that the run evaluates


@dataclass(frozen=True)
class Metric:
    """A column of the before/after table. ``better`` is +1 if more is better, -1 if less is, 0 if neither."""

    key: str
    label: str
    better: int = 0
    digits: int = 3
    percent: bool = False

    def text(self, value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "–"
        return number(100 * value if self.percent else value, self.digits) + (
            "%" if self.percent else ""
        )

    def change(self, value: float | None, base: float | None) -> tuple[str, str]:
        """The signed difference and the CSS class that colours it."""
        if value is None or base is None or not math.isfinite(value - base):
            return "", ""
        text = number((100 if self.percent else 1) * (value - base), self.digits)
        if float(text.replace("−", "-")) == 0:
            return "±0", ""
        worth = self.better * (value - base)
        return text if text.startswith(
            "−"
        ) else "+" + text, "better" if worth > 0 else "worse" if worth < 0 else ""


METRICS = (
    Metric("greedy_accuracy", "Greedy accuracy", 1, 1, percent=True),
    Metric("sampled_accuracy", "Sampled accuracy", 1, 1, percent=True),
    Metric("kendall_tau", "Kendall τ", 1),
    Metric("top1", "Top-1", 1, 1, percent=True),
    Metric("ppd_loss", "Loss", -1),
    Metric("fresh_kendall_tau", "τ, fresh samples", 1),
    Metric("fresh_top1", "Top-1, fresh", 1, 1, percent=True),
    Metric("mean_length", "Mean length", 0, 1),
    Metric("duplicate_ratio", "Duplicates", 0, 1, percent=True),
    Metric("clipped_ratio", "Cut off", -1, 1, percent=True),
)
HEADLINES = ("greedy_accuracy", "sampled_accuracy", "kendall_tau", "ppd_loss")


def number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def label(name: str) -> str:
    """A reader's word for the name of an evaluated model."""
    known = {"teacher": "Teacher", "student-00": "Base student", "seqkd": "SeqKD"}
    return known.get(name, f"After round {int(name[8:])}" if name.startswith("student-") else name)


def headlines(run: Run) -> list[dict[str, str]]:
    if len(run.students) < 2:
        return []
    base, last = run.students[0], run.students[-1]
    tiles = []
    for metric in (metric for metric in METRICS if metric.key in HEADLINES):
        before, after = base.get(metric.key), last.get(metric.key)
        if finite(before) and finite(after):
            change, css = metric.change(after, before)
            teacher = (run.teacher or {}).get(metric.key)
            tiles.append(
                {
                    "label": metric.label,
                    "before": metric.text(before),
                    "after": metric.text(after),
                    "change": change,
                    "css": css,
                }
                | {"teacher": metric.text(teacher) if finite(teacher) else ""}
            )
    return tiles


def before_after(run: Run) -> dict[str, Any]:
    rows = [row for row in (run.teacher, *run.students, *run.baselines) if row]
    base = run.students[0] if run.students else {}
    columns = [metric for metric in METRICS if any(finite(row.get(metric.key)) for row in rows)]
    body = []
    for row in rows:
        compared = row is not base and row is not run.teacher
        cells = [
            (
                m.text(row.get(m.key)),
                *(m.change(row.get(m.key), base.get(m.key)) if compared else ("", "")),
            )
            for m in columns
        ]
        body.append({"label": label(row["name"]), "cells": cells})
    return {"columns": columns, "rows": body}


def skills(run: Run) -> dict[str, Any]:
    """Accuracy of each skill: teacher, base student, last student, baselines."""
    rows = [
        row
        for row in (run.teacher, *run.students[:1], *run.students[1:][-1:], *run.baselines)
        if row and row.get("skills")
    ]
    metric = METRICS[0]
    base = run.students[0].get("skills") or {} if run.students else {}
    body = []
    for skill in sorted({skill for row in rows for skill in row["skills"]}):
        scores = [row["skills"].get(skill, {}) for row in rows]
        cells = []
        for row, score in zip(rows, scores, strict=True):
            compared = row is not run.teacher and row is not run.students[0]
            start = base.get(skill, {}).get("greedy_accuracy") if compared else None
            sampled = metric.text(score.get("sampled_accuracy"))
            cells.append(
                (
                    metric.text(score.get("greedy_accuracy")),
                    *metric.change(score.get("greedy_accuracy"), start),
                    sampled,
                )
            )
        body.append(
            {
                "skill": skill,
                "count": max(score.get("count") or 0 for score in scores),
                "cells": cells,
            }
        )
    return {"columns": [label(row["name"]) for row in rows], "rows": body}


def order(group: Group) -> list[int]:
    """The responses, the teacher's best first, masked ones last."""
    return sorted(
        range(len(group.teacher)),
        key=lambda i: (not math.isfinite(group.teacher[i]), -group.teacher[i], i),
    )


def _ranks(reward: Floats, live: Floats) -> list[str]:
    """1 for the best live response; ties, copies of a text up to rounding, share a rank; a dash for a masked response."""
    values = reward[live.astype(bool)]
    return [
        str(1 + int((values > value + TIE).sum())) if alive else "–"
        for value, alive in zip(reward, live, strict=True)
    ]


def group_table(group: Group) -> dict[str, Any]:
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
    greedy = {label(name): text for name, text in group.greedy.items()}
    return {
        "prompt": group.prompt,
        "answer": group.answer,
        "rows": rows,
        "greedy": greedy,
        "has_after": group.after is not None,
    }


def phases(run: Run) -> dict[str, Any]:
    """What sampling and scoring reported: a row a metric, a column a round, the mean over the shards."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in run.metrics:
        for key, value in row.items() if row["phase"] in ("sample", "score") else ():
            if key not in ("round", "step") and isinstance(value, int | float) and finite(value):
                found[key][row.get("round") or 0].append(value)
    rounds = sorted({number for columns in found.values() for number in columns})
    body = {
        key: [f"{np.mean(columns[number]):.4g}" if number in columns else "–" for number in rounds]
        for key, columns in found.items()
    }
    return {"rounds": rounds, "rows": body}


def details(run: Run) -> dict[str, dict[str, str]]:
    """The manifest: long tables that stay folded."""
    tables: dict[str, dict[str, str]] = {"All settings": {}}
    for section, value in run.manifest.items():
        title = "All settings" if section == "config" else section.replace("_", " ").capitalize()
        tables[title] = flat(value if isinstance(value, dict) else {section: value})
    return {title: rows for title, rows in tables.items() if rows}


def flat(tree: Row, prefix: str = "") -> dict[str, str]:
    """Dotted names and values; a page is passed on, so no access token is shown."""
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            rows |= flat(value, f"{prefix}{key}.")
        elif key.endswith("_token") and value is not None:
            rows[prefix + key] = "(not shown)"
        else:
            rows[prefix + key] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            )
    return rows
