"""Reading what a run wrote. Damage is an error that says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pad_fast.files.checksums import JSON_KEY, is_whole, json_digest, with_checksum, write_parquet
from pad_fast.files.json_text import json_value
from pad_fast.files.writing import replacing

ROWS_AT_A_TIME = 1024  # read at a time where a file may be long


def set_aside(path: Path) -> str:
    """What to do about a damaged file or folder that the command makes again when it is gone."""
    move = shlex.join(["mv", str(path), f"{path}.damaged"])
    return f"set it aside with `{move}`, and the same command makes it again"


def write_table(path: Path, tables: pa.Table | Iterable[pa.Table]) -> None:
    """Write a Parquet file with its checksum, of one table or of several with one schema.

    Of several, one at a time is in memory.
    """
    with replacing(path) as temporary:
        write_parquet(temporary, [tables] if isinstance(tables, pa.Table) else tables)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file that :func:`write_table` wrote.

    Args:
        path: the file.
        columns: the names of those to read, as far as they are there; by default all.

    Raises:
        ValueError: the file is not as it was written.
    """
    with _readable(path):
        chosen = _checked_columns(path, columns)
        with pq.ParquetFile(path) as file:
            return file.read(columns=chosen)


def read_tables(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of :func:`read_table` in tables of at most :data:`ROWS_AT_A_TIME` rows.

    The whole file is checked before the first of them is given.
    """
    with _readable(path):
        chosen = _checked_columns(path, columns)
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=chosen):
                yield pa.Table.from_batches([batch])


def _checked_columns(path: Path, columns: Sequence[str] | None) -> list[str] | None:
    """Those columns that a file has, which is as it was written."""
    if not is_whole(path):
        raise ValueError("its checksum is not that of its content")
    if columns is None:
        return None
    names = pq.read_schema(path).names
    return [name for name in columns if name in names]


def read_note(path: Path, key: bytes) -> dict[str, Any] | None:
    """The JSON object under a key of a Parquet file's metadata; None if there is none.

    None also if the file is damaged, which whoever needs its rows finds out.
    """
    try:
        found = (pq.read_schema(path).metadata or {}).get(key)
        return None if found is None else json.loads(found)
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # the system's, which says nothing of it
            raise
        return None


def count_rows(path: Path) -> int:
    """The number of rows of a Parquet file, of which the end alone is read."""
    with path.open("rb") as stream, _readable(path):
        return pq.read_metadata(stream).num_rows


def count_items(path: Path, column: str) -> int:
    """The number of items of all lists in a column, of which the file's end alone is read.

    No list may be empty: it would count as one item.
    """
    with path.open("rb") as stream, _readable(path):
        found = pq.read_metadata(stream)
        groups = map(found.row_group, range(found.num_row_groups))
        chunks = (group.column(index) for group in groups for index in range(group.num_columns))
        return sum(
            chunk.num_values for chunk in chunks if chunk.path_in_schema.startswith(f"{column}.")
        )


def column_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet file.

    Raises:
        ValueError: the file is damaged.
    """
    with path.open("rb") as stream, _readable(path):
        return list(pq.read_schema(stream).names)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise ValueError, with what to do, where the content of a file is not Parquet."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # the system's, which says nothing of it
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}); {set_aside(path)}") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as indented JSON with its checksum."""
    text = json.dumps(with_checksum(value), indent=2, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """The object in a JSON file, without its checksum.

    Args:
        path: the file.
        remedy: what to do about a damaged one; by default to set it aside.

    Raises:
        ValueError: it holds something else, or its checksum is not that of its content.
    """
    remedy = remedy or set_aside(path)
    try:
        value = json_value(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object; {remedy}")
    known = value.pop(JSON_KEY, None)
    if known is not None and known != json_digest(value):
        raise ValueError(
            f"{path} is damaged: it is not as it was written; {remedy} (if you changed it on "
            f'purpose, remove its line "{JSON_KEY}")'
        )
    return value


def add_json_line(path: Path, value: dict[str, Any]) -> None:
    """Add an object to a file of JSON lines, after a last line that a kill left half written."""
    drop_half_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def drop_half_line(path: Path) -> None:
    """Remove the last line of a file if it has no end."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines.

    A last line without its end, which a kill leaves, is not read. A file that is missing has none.

    Raises:
        ValueError: another line is no JSON object; the message has its number.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            value = json_value(line.decode())
            if not isinstance(value, dict):
                raise ValueError("it holds no JSON object")
        except ValueError as error:
            raise ValueError(
                f"{path}: line {number} is damaged: {error}; {set_aside(path)}"
            ) from None
        found.append(value)
    return found
