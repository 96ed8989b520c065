"""Rows as Parquet files, one for each shard.

Whatever has its final name is complete, and the presence of a file is the only record of progress:
a killed run resumes from its files alone. Each file carries a checksum, which is checked when it is
read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pad_fast.files.own_files import read_note, read_tables, write_table
from pad_fast.files.stored_rows import Row, RowFiles, Rows, batches

TABLE_ROWS = 4096  # rows of a table, and so of a row group, at most
KEPT_ROWS = 512  # the same of rows that are only kept while a command works
METRICS_KEY = b"pad_fast.metrics"

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
    "given": pa.string(),
    "given_scores": pa.list_(pa.float64()),
    "student_rewards": pa.list_(pa.float64()),
    "sampled_by": pa.string(),
    "scored_by": pa.string(),
    "greedy_text": pa.string(),
    "ppd_loss": pa.float64(),  # the configured loss, any of them
}


def table(rows: Sequence[Row], like: pa.Schema | None = None) -> pa.Table:
    """An Arrow table of ``rows``, which all have the keys of the first.

    The columns get the types of the schema ``like``, by default those of :data:`COLUMNS`.

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
    types = COLUMNS if like is None else {field.name: field.type for field in like}
    columns = {
        name: pa.array([row[name] for row in rows], type=types.get(name)) for name in rows[0]
    }
    return pa.table(columns)


def tables(rows: Iterable[Row], size: int) -> Iterator[pa.Table]:
    """Tables of ``size`` rows, all with the schema of the first."""
    schema = None
    for batch in batches(rows, size):
        found = table(batch, schema)
        del batch  # before the next one is made
        schema = schema or found.schema
        yield found


def _is_finite(value: Any) -> bool:
    """Whether no float in ``value``, or in the list that it is, is NaN or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, list) or all(
        math.isfinite(item) for item in value if isinstance(item, float)
    )


def write_rows(path: Path, rows: Iterable[Row], metrics: Row | None = None) -> None:
    """Write ``rows`` as one Parquet file with its checksum, and what was measured of them.

    Of many rows, :data:`TABLE_ROWS` are in memory at a time. There must be one at least.
    """
    note = None if metrics is None else {METRICS_KEY: json.dumps(metrics)}
    write_table(path, (each.replace_schema_metadata(note) for each in tables(rows, TABLE_ROWS)))


def read_metrics(path: Path) -> Row | None:
    """What was measured of the rows in a Parquet file.

    None if nothing was written with them, or if the file is damaged: whoever needs its rows finds
    out.
    """
    return read_note(path, METRICS_KEY)


def read_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file, or of all shards in a folder in their order.

    They are in memory together; :func:`iter_rows` and :func:`keep_shards` are for many shards.

    Raises:
        ValueError: a file is damaged.
    """
    return list(iter_rows(path))


def iter_rows(path: Path) -> Iterator[Row]:
    """The rows of :func:`read_rows`, of which one shard's are in memory at a time."""
    for file in shard_paths(path) if path.is_dir() else [path]:
        for part in read_tables(file):
            yield from part.to_pylist()


def keep_rows(files: RowFiles, rows: Iterable[Row]) -> Rows:
    """Rows that are written as they come, and then read from disk when they are asked for."""
    return files.keep(tables(rows, KEPT_ROWS))


def keep_shards(files: RowFiles, path: Path, columns: Sequence[str] | None = None) -> Rows:
    """The rows of a Parquet file or of all shards in a folder, read when they are asked for.

    Args:
        files: where they are until then.
        path: the file, or the folder.
        columns: the names of those that are needed; by default all.
    """
    shards = shard_paths(path) if path.is_dir() else [path]
    return files.keep(part for shard in shards for part in read_tables(shard, columns))


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard, which may not exist."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path) -> list[Path]:
    """The files of the shards that a folder holds, in their order."""
    return sorted(folder.glob("part-*.parquet"))


def shard_index(path: Path) -> int:
    """The index of the shard in a file that :func:`shard_path` names."""
    return int(path.stem.removeprefix("part-"))
