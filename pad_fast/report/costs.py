"""What the work of a run took beside what was planned: time, tokens and peak memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pad_fast.files.own_files import read_json, read_json_lines

Row = dict[str, Any]
COSTS, PLAN = "costs.jsonl", "plan.json"
MEASURED = ("title", "unit", "count", "tokens", "seconds", "peak")


@dataclass(frozen=True)
class Comparison:
    """A piece of work. What is not known is None.

    Attributes:
        title: of its progress bar.
        unit: what is counted, such as "response".
        count: how many were done.
        tokens: made or read for them.
        seconds, peak: that were taken; bytes.
        planned_seconds, planned_peak: of all of its work.
        planned_count: how many there were to do.
    """

    title: str
    unit: str
    count: int
    tokens: int
    seconds: float
    peak: int | None
    planned_seconds: float | None = None
    planned_peak: int | None = None
    planned_count: int | None = None

    @property
    def planned_here(self) -> float | None:
        """The planned time of as many responses, questions or steps as were done."""
        if self.planned_seconds is None or not self.planned_count:
            return None
        return self.planned_seconds * self.count / self.planned_count

    @property
    def time_ratio(self) -> float | None:
        """The time over the planned one of as much work."""
        return self.seconds / self.planned_here if self.planned_here else None

    @property
    def memory_ratio(self) -> float | None:
        """The peak over the planned one."""
        return self.peak / self.planned_peak if self.peak and self.planned_peak else None

    @property
    def rate(self) -> float | None:
        """Tokens a second."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    def as_json(self) -> Row:
        """All of it, with the ratios."""
        return {
            **asdict(self),
            "time_ratio": self.time_ratio,
            "memory_ratio": self.memory_ratio,
        }


def read_costs(folder: Path) -> list[Row]:
    """The pieces of a run's work in the order in which they began, with stretches added up."""
    path, found = folder / COSTS, dict[str, Row]()
    for row in read_json_lines(path):
        known = found.setdefault(
            row["title"], {**row, "count": 0, "tokens": 0, "seconds": 0.0, "peak": None}
        )
        for name in ("count", "tokens", "seconds"):
            known[name] += row[name]
        known["peak"] = max(filter(None, (known["peak"], row["peak"])), default=None)
    return list(found.values())


def read_plan(folder: Path) -> Row | None:
    """The plan that was kept in a run's folder; None if there is none."""
    path = folder / PLAN
    return read_json(path) if path.exists() else None


def compared(plan: Row | None, costs: Sequence[Row]) -> list[Comparison]:
    """Each piece that was done, with what was planned of it.

    A planned piece of several rounds has the same share of its time and number in each.
    """
    planned = {
        title: (piece, len(piece["titles"]))
        for piece in (plan or {}).get("pieces", ())
        for title in piece["titles"]
    }
    found = []
    for row in costs:
        facts = {name: row[name] for name in MEASURED}
        if row["title"] in planned:
            piece, rounds = planned[row["title"]]
            seconds = piece["seconds"]
            facts |= {
                "planned_seconds": None if seconds is None else seconds / rounds,
                "planned_peak": piece["peak"],
                "planned_count": piece["count"] // rounds,
            }
        found.append(Comparison(**facts))
    return found


def section(folder: Path) -> Row:
    """The report's table: pieces that are equal but for the round are added up."""
    plan = read_plan(folder)
    rows = _added_up(compared(plan, read_costs(folder)))
    columns = ["Work", "Number", "Tokens", "Tokens a second", "Time", "Peak memory"]
    columns += ["Planned time", "Planned memory"] if plan else []
    return {
        "columns": columns,
        "rows": [_cells(row, planned=plan is not None) for row in rows],
        "planned": plan is not None,
        "sentence": KEPT + (BESIDE if plan else UNPLANNED),
    }


KEPT = (
    "Each piece of work by the title of its progress bar, rounds added up. Its time is without the "
    "loading of models, and without stretches that were killed. "
)
BESIDE = (
    "The plan is that of pad-fast plan, for as many responses, questions or steps as were done."
)
UNPLANNED = "pad-fast plan --keep true, given before the run, adds what was foreseen."


def _added_up(rows: Sequence[Comparison]) -> list[Comparison]:
    """One row for all rounds of a piece, in the place of the first."""
    found: dict[str, list[Comparison]] = {}
    for row in rows:
        found.setdefault(re.sub(r"round \d+/\d+ · |(?<=student-)\d+", "", row.title), []).append(
            row
        )
    return [_sum(title, part) for title, part in found.items()]


def _sum(title: str, rows: Sequence[Comparison]) -> Comparison:
    planned = [row.planned_here for row in rows]
    known = [seconds for seconds in planned if seconds is not None]
    peaks = [row.planned_peak for row in rows if row.planned_peak]
    count = sum(row.count for row in rows)
    return Comparison(
        title,
        rows[0].unit,
        count,
        sum(row.tokens for row in rows),
        sum(row.seconds for row in rows),
        max((row.peak for row in rows if row.peak), default=None),
        sum(known) if len(known) == len(planned) else None,
        max(peaks, default=None),
        count,
    )


def _cells(row: Comparison, *, planned: bool) -> list[str]:
    plural = "" if row.count == 1 else "s"
    cells = [
        row.title,
        f"{row.count:,} {row.unit}{plural}",
        f"{row.tokens:,}" if row.tokens else "–",
        "–" if row.rate is None else f"{row.rate:,.0f}",
        _time(row.seconds),
        _memory(row.peak),
    ]
    return cells + ([_time(row.planned_seconds), _memory(row.planned_peak)] if planned else [])


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _memory(nbytes: int | None) -> str:
    return "–" if nbytes is None else f"{nbytes / 2**30:.2f} GiB"
