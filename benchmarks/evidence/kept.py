"""Records as short as the tables need them, which is how they are committed.

Intervals, win rates and the control of the temperature need four measures of each prompt; all
others are shown as means. Greedy answers do not depend on the temperature of samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.evidence.methods import BASE
from benchmarks.records import Record

# Measures that are kept for each prompt, with the decimals that are kept.
GREEDY = {"greedy_right": 4, "greedy_teacher": 2}
SAMPLED = {"sampled_right": 4, "sampled_teacher": 2}


def shortened(record: Record) -> Record:
    """A record without what no table reads; grades as they are, log-probabilities to 0.01 nats."""
    if "prompts" not in record:
        return record
    cell = record["cell"]
    control = cell["method"] == BASE and cell["temperature"] != 1.0
    wanted = SAMPLED if control else GREEDY | SAMPLED
    kept = {
        name: [None if value is None else _short(value, wanted[name]) for value in values]
        for name, values in record["prompts"].items()
        if name in wanted
    }
    return {**record, "prompts": kept}


def write_shortened(records: Iterable[Record], path: Path) -> int:
    """Write records as JSON lines, in their order; returns the bytes."""
    lines = [json.dumps(shortened(record), separators=(",", ":")) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path.stat().st_size


def _short(value: float, digits: int) -> float | int:
    found = round(value, digits)
    return int(found) if found == int(found) else found
