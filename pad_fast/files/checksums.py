"""Checksums that a file carries in itself, so that damage is found when the file is read.

A Parquet file holds the SHA-256 of its own bytes, with zeros in the place of the checksum, among
its key-value metadata. A JSON object holds that of its other keys under the key ``sha256``. Both
survive a move or a copy, and other programs read the files as any others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

JSON_KEY = "sha256"
PARQUET_KEY = b"pad_fast.sha256"
EMPTY = b"0" * 64
HASHED_BYTES = 1 << 20  # at each end of a file, and at a time


def write_parquet(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables with one schema as a Parquet file with its checksum, a row group for each."""
    left = iter(tables)
    first = next(left)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in left:
            writer.write_table(table)
        writer.add_key_value_metadata({PARQUET_KEY.decode(): EMPTY.decode()})
    place = _place_of(EMPTY, path)
    digest = _digest_around(path, place)
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(digest)


def is_whole(path: Path) -> bool:
    """Whether a Parquet file has its checksum and is as it was written.

    Raises:
        pa.ArrowException, OSError: the content is not Parquet.
    """
    with path.open("rb") as stream:
        known = (pq.read_metadata(stream).metadata or {}).get(PARQUET_KEY, b"")
    place = _place_of(known, path) if len(known) == len(EMPTY) else -1
    return place >= 0 and _digest_around(path, place) == known


def _place_of(text: bytes, path: Path) -> int:
    """Where a text stands in the end of a Parquet file, which holds its metadata; -1: nowhere."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)  # the length of the metadata, and "PAR1"
        length = 8 + int.from_bytes(stream.read(4), "little")
        start = max(0, size - length)
        stream.seek(start)
        place = stream.read().rfind(text)
    return place if place < 0 else start + place


def _digest_around(path: Path, place: int) -> bytes:
    """The SHA-256 of a file with zeros at the place of its checksum."""
    digest, left = hashlib.sha256(), place
    with path.open("rb") as stream:
        while left and (part := stream.read(min(left, HASHED_BYTES))):
            digest.update(part)
            left -= len(part)
        digest.update(EMPTY)
        stream.seek(place + len(EMPTY))
        while part := stream.read(HASHED_BYTES):
            digest.update(part)
    return digest.hexdigest().encode()


def has_checksum(path: Path) -> bool:
    """Whether a file is a Parquet file with a checksum, which other programs do not write."""
    try:
        return PARQUET_KEY in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum as the last key."""
    plain = json.loads(json.dumps(value))
    return {**plain, JSON_KEY: json_digest(plain)}


def json_digest(value: dict[str, Any]) -> str:
    """The checksum of a parsed JSON object."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(HASHED_BYTES):
            digest.update(part)
    return digest.hexdigest()


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
