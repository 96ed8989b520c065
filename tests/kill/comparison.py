"""What two run folders have to share to the last bit, and what holds the time of day."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from pad_fast.pipeline.parquet_rows import read_rows

# Left out, since no two runs share them: times of day, durations and rates; who holds the folder.
RATES = ("_runtime", "_per_second")
CREATED = "created"
TOOK = b'<tr class="took">'  # a row of times on the report's page
NOT_COMPARED = (".lock", "costs.jsonl")


def contents(run: Path) -> dict[str, str]:
    """A digest of each file of a run folder, by its path.

    Left out are the lock, what the work took (costs.jsonl), when a run was created (in run.json,
    whose own checksum goes with it, and on the report's page, with the times there), and durations
    and rates in metrics.jsonl and trainer_state.json. The folder's own path is replaced. The cache
    is compared as one set of entries, since a killed run cuts it into other parts.
    """
    found: dict[str, str] = {}
    cached: dict[str, list[float]] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or path.name.startswith(NOT_COMPARED):
            continue
        if "teacher_cache" in path.parts and path.suffix == ".parquet":
            cached |= {bytes(row["key"]).hex(): row["values"] for row in read_rows(path)}
        else:
            found[name] = hashlib.sha256(_comparable(path, run)).hexdigest()
    found["teacher_cache"] = _digest(sorted(cached.items()))
    return found


def _comparable(path: Path, run: Path) -> bytes:
    if zipfile.is_zipfile(path):  # from torch.save, whose checksums cover the folder's path too
        with zipfile.ZipFile(path) as file:
            names = [name for name in sorted(file.namelist()) if "serialization_id" not in name]
            parts = [name.encode() + file.read(name) for name in names]
        return b"".join(_without_path(part, run) for part in parts)
    content = _without_path(path.read_bytes(), run)
    if path.suffix == ".jsonl":
        return _as_json([_timeless(json.loads(line)) for line in content.splitlines()])
    if path.suffix == ".json":
        value = _timeless(json.loads(content))
        if path == run / "run.json":
            value = {name: value[name] for name in value if name not in (CREATED, "sha256")}
        return _as_json(value)
    if path == run / "report" / "index.html":
        lines = content.split(b"\n")
        left_out = (f"<th>{CREATED}</th>".encode(), TOOK)
        return b"\n".join(line for line in lines if not any(part in line for part in left_out))
    return content


def _without_path(content: bytes, run: Path) -> bytes:
    return content.replace(str(run).encode(), b"RUN").replace(run.name.encode(), b"RUN")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if not name.endswith(RATES)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _as_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(value: Any) -> str:
    return hashlib.sha256(_as_json(value)).hexdigest()


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The names of the files that only one of two folders has, or that differ."""
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name) != found.get(name)]
