"""Checksums that a file carries in itself, so that damage is found when the file is read.

A Parquet file holds the SHA-256 of its own bytes, with zeros in the place of the checksum, among
its key-value metadata. A JSON object holds that of its other keys under the key ``sha256``. Both
survive a move or a copy, and other programs read the files as any others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

JSON_KEY = "sha256"
PARQUET_KEY = b"pad_fast.sha256"
EMPTY = b"0" * 64
HASHED_BYTES = 1 << 20  # at each end of a file, and at a time


def parquet_bytes(table: pa.Table) -> bytearray:
    """The content of a Parquet file of ``table``, with its checksum."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({PARQUET_KEY.decode(): EMPTY.decode()})
    content = bytearray(sink.getvalue())
    place = content.rindex(EMPTY)
    content[place : place + len(EMPTY)] = hashlib.sha256(content).hexdigest().encode()
    return content


def is_whole(content: bytes) -> bool:
    """Whether a Parquet file has its checksum and is as it was written.

    Raises:
        pa.ArrowException, OSError: the content is not Parquet.
    """
    known = (pq.read_metadata(pa.BufferReader(content)).metadata or {}).get(PARQUET_KEY, b"")
    place = content.rfind(known) if len(known) == len(EMPTY) else -1
    if place < 0:
        return False
    digest, whole = hashlib.sha256(), memoryview(content)
    for part in (whole[:place], EMPTY, whole[place + len(EMPTY) :]):
        digest.update(part)
    return digest.hexdigest().encode() == known


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
