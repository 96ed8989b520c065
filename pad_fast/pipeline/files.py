"""What a run writes, and how: every file and folder appears whole, under its name, or not at all.

A thing is written beside its place under a temporary name, flushed to the disk and renamed. So whatever carries its name is
complete, the presence of a file is the only record of progress, and a killed run goes on from the files alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

COLUMNS = {
    "prompt_id": pa.string(),
    "prompt_ids": pa.list_(pa.int32()),
    "answer": pa.string(),
    "skill": pa.string(),
    "completions": pa.list_(pa.string()),
    "completion_ids": pa.list_(pa.list_(pa.int32())),
    "finish_reasons": pa.list_(pa.string()),
    "teacher_logps": pa.list_(pa.float64()),
    "teacher_num_tokens": pa.list_(pa.int32()),
    "teacher_choice_probs": pa.list_(pa.float64()),
    "teacher_rewards": pa.list_(pa.float64()),
    "student_rewards": pa.list_(pa.float64()),
    "greedy_text": pa.string(),
    "ppd_loss": pa.float64(),
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; on success it is flushed and takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")) if temporary.is_dir() else ():
            _flush(file)
        _flush(temporary)
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def table(rows: Sequence[Row]) -> pa.Table:
    """An Arrow table of `rows`, which all have the keys of the first; known columns get their fixed types."""
    columns = {
        name: pa.array([row[name] for row in rows], type=COLUMNS.get(name)) for name in rows[0]
    }
    return pa.table(columns)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` as one Parquet file."""
    with replacing(path) as temporary:
        pq.write_table(table(rows), temporary)


def read_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file, or of all shards of a folder in their order."""
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.parquet"


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
