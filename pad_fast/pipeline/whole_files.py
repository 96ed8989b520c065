"""Files that are complete or absent, and rows as Parquet shards.

A file or folder is written under a temporary name, flushed to the disk and renamed. Whatever has
its final name is therefore complete, and the presence of a file is the only record of progress: a
killed run resumes from its files alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
HASHED_BYTES = 1 << 20  # at each end of a file

# Fixed types, since Arrow would infer other ones from a shard whose values are all null.
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
    "sampled_by": pa.string(),
    "scored_by": pa.string(),
    "greedy_text": pa.string(),
    "ppd_loss": pa.float64(),
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces ``path`` on success.

    If the block raises, what was written is removed and ``path`` stays as it was.
    """
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
    """Write ``value`` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def table(rows: Sequence[Row]) -> pa.Table:
    """An Arrow table of ``rows``, which all have the keys of the first.

    The columns in :data:`COLUMNS` get the types that stand there.

    Raises:
        ValueError: a number in one of these columns is NaN or infinite.
    """
    for name in rows[0].keys() & COLUMNS.keys():
        for place, row in enumerate(rows):
            if not _is_finite(row[name]):
                named = row.get("prompt_id", place)
                raise ValueError(
                    f"{name}: must be finite to be kept, got {row[name]} in row {named}"
                )
    columns = {
        name: pa.array([row[name] for row in rows], type=COLUMNS.get(name)) for name in rows[0]
    }
    return pa.table(columns)


def _is_finite(value: Any) -> bool:
    """Whether no float in ``value``, or in the list that it is, is NaN or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, list) or all(
        math.isfinite(item) for item in value if isinstance(item, float)
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` as one Parquet file."""
    with replacing(path) as temporary:
        pq.write_table(table(rows), temporary)


def read_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file, or of all shards in a folder in their order.

    Raises:
        ValueError: a file is not Parquet.
    """
    files = shard_paths(path) if path.is_dir() else [path]
    return [row for file in files for row in _read_table(file).to_pylist()]


def _read_table(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is damaged; remove it, and it is made again ({error})") from None


def read_json(path: Path) -> Row:
    """The object in a JSON file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return value


def ends_hash(files: Iterable[Path]) -> str:
    """A hash over the names, sizes and both ends of files, which may be many gigabytes."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(HASHED_BYTES))
            stream.seek(max(0, size - HASHED_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard, which may not exist."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path) -> list[Path]:
    """The files of the shards that a folder holds, in their order."""
    return sorted(folder.glob("part-*.parquet"))


def shard_index(path: Path) -> int:
    """The index of the shard in a file that :func:`shard_path` names."""
    return int(path.stem.removeprefix("part-"))


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
