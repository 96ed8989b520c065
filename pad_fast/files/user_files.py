"""Reading files that users bring: errors name the file and the line or row."""

from __future__ import annotations

import codecs
import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pad_fast.files.json_text import placed_items, placed_value, times

LONGEST_CELL = 2**31 - 1  # the most that csv takes on every system
BATCH = 1000  # rows of a Parquet file that are in memory at a time


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number and the text of each line of a file in UTF-8.

    Raises:
        ValueError: a line is not UTF-8.
    """
    for number, line in enumerate(_byte_lines(path), 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: line {number} is not UTF-8: byte 0x{line[error.start]:02x} at "
                f"{error.start + 1}"
            ) from None


def _byte_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, as they are read."""
    with path.open("rb") as stream:
        for line in stream:  # up to a line feed
            # bytes.splitlines knows line feeds and carriage returns, and no other separators.
            yield from line.splitlines(keepends=True)


def is_json_list(path: Path) -> bool:
    """Whether a file begins as a JSON list, and not as JSON lines."""
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The place and the value of each line of JSON, or of each item of a list in a .json file."""
    if path.suffix == ".json" and is_json_list(path):
        yield from placed_items("".join(text for _, text in text_lines(path)), str(path))
        return
    for number, text in text_lines(path):
        if text.strip():
            place = f"{path}: line {number}"
            yield place, placed_value(text, place)


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The place and the cells of each row below the header line.

    Raises:
        ValueError: a column stands twice, a row has too many cells, or quotes are not closed.
    """
    number, begin = 0, 0
    with _long_cells():
        reader = csv.DictReader((text for _, text in text_lines(path)), strict=True)
        try:
            names = list(reader.fieldnames or ())
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(
                        f"{path}: the column {name!r} stands {times(names.count(name))}"
                    )
            begin = reader.line_num + 1
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise ValueError(
                        f"{path}: row {number} has more cells than the {len(names)} of the first "
                        "line; a cell that holds a comma needs quotes around it"
                    )
                begin = reader.line_num + 1
                yield f"{path}: row {number}", row
        except csv.Error as error:
            raise ValueError(
                f"{path}: row {number + 1}, which begins in line {begin}, cannot be read: {error}"
            ) from None


def _check_columns(names: Sequence[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: the column {name!r} stands {times(names.count(name))}")


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let csv read cells of any length, of which its own limit is 131,072 characters."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the cells of each row of a Parquet file.

    Raises:
        ValueError: the file is no Parquet file, a column stands twice, or rows cannot be read.
    """
    number = 0
    with _as_value_error(lambda: f"{path}: cannot be read as a Parquet file"):
        names = pq.read_schema(path).names
    _check_columns(names, path)
    with (
        _as_value_error(lambda: f"{path}: row {number + 1} or one after it cannot be read"),
        pq.ParquetFile(path, page_checksum_verification=True) as file,
    ):
        for batch in file.iter_batches(BATCH):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


@contextlib.contextmanager
def _as_value_error(begin: Callable[[], str]) -> Iterator[None]:
    """The errors of Arrow as a ValueError whose message has a beginning."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{begin()}: {' '.join(str(error).split())}") from None
