"""Records of measurements: JSON lines in benchmarks/results/, which are only added to.

Every record names its ``run`` (the time at which it began) and its machine. Figures of two runs
never meet in one table, so readers choose whole runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.contestants import NAIVE, OURS
from pad_fast.files.own_files import add_json_line
from pad_fast.files.writing import replacing

RESULTS = Path(__file__).parent / "results"

Record = dict
Cases = dict[str, list[Record]]  # by the label of the case


def path(results: Path, name: str) -> Path:
    """The file of a suite's or another command's records."""
    return results / f"{name}.jsonl"


def now() -> str:
    """The time in UTC, by which a run is named."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append(file: Path, record: Record) -> None:
    """Add one record to a file, which is made if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    add_json_line(file, record)


def rewrite(results: Path, name: str, records: Iterable[Record]) -> None:
    """Write all records of a command anew, in place of what is there."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    with replacing(path(results, name)) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def load(results: Path, name: str) -> list[Record]:
    """All records of a suite or another command, oldest first."""
    file = path(results, name)
    return json_lines(file) if file.exists() else []


def json_lines(file: Path) -> list[Record]:
    """The objects of a file of JSON lines."""
    # str.splitlines would also divide a line at U+2028, which JSON allows within a string.
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def newest(records: Iterable[Record]) -> dict[tuple[str, str], Cases]:
    """The newest run of each device: {(device, run): {case: records}}."""
    kept = list(records)
    last: dict[str, str] = {}
    for record in kept:
        last[record["device"]] = max(record["run"], last.get(record["device"], ""))
    runs: dict[tuple[str, str], Cases] = {}
    for record in kept:
        key = (record["device"], record["run"])
        if record["run"] == last[record["device"]]:
            runs.setdefault(key, {}).setdefault(record["case"], []).append(record)
    return runs


def last_run(results: Path, name: str) -> list[Record]:
    """The records that the last run of a command added, on whatever device."""
    records = load(results, name)
    last = max((record["run"] for record in records), default=None)
    return [record for record in records if record["run"] == last]


def is_listwise(record: Record) -> bool:
    """Whether the record is of a listwise loss: such a case has prompts and responses only."""
    return set(record["shape"]) == {"P", "N"}


def quickest_peer(measured: Mapping[str, Record]) -> Record | None:
    """The record of the quickest of the others that do the same job; None if none was measured.

    Args:
        measured: the records of a case in which the contestant was measured, by the contestant.
    """
    others = (
        record
        for name, record in measured.items()
        if name != NAIVE and not name.startswith(OURS) and record["same_job"]
    )
    return min(others, key=lambda record: record["median_ms"], default=None)


def memory_of_naive(measured: Mapping[str, Record]) -> float | None:
    """Our peak of memory as a share of PyTorch's; None where that is not known."""
    naive = measured.get(NAIVE, {}).get("peak_bytes")
    return measured[OURS]["peak_bytes"] / naive if naive else None


def ran(cases: Cases) -> list[Record]:
    """The records of all cases in which the contestant was measured."""
    return [record for records in cases.values() for record in records if record["status"] == "ok"]
