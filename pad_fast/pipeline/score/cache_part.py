"""One part of the score cache: an SQLite file that never changes, named by a hash of its content.

Whoever reads it takes no lock and writes nothing, so a part may lie on a network file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import struct
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from pad_fast.files.checksums import file_digest
from pad_fast.files.writing import flush

Entry = tuple[bytes, bytes]  # a key, and numbers as packed() gives them

NAMES = "part-*.sqlite"
HASH_DIGITS = 32
TABLE = "CREATE TABLE scores (key BLOB PRIMARY KEY, numbers BLOB NOT NULL) WITHOUT ROWID"


def packed(numbers: Iterable[float]) -> bytes:
    """Numbers as bytes, eight each."""
    values = list(numbers)
    return struct.pack(f"<{len(values)}d", *values)


def unpacked(content: bytes) -> list[float]:
    """The numbers that :func:`packed` was given."""
    return list(struct.unpack(f"<{len(content) // 8}d", content))


class DamagedPart(ValueError):
    """A part that cannot be read, or does not hold what its name says."""


class Part:
    """A part that is open for reading.

    Args:
        path: its file.

    Raises:
        FileNotFoundError: the file is gone.
        DamagedPart: here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        if part_name(path) != path.name:
            raise DamagedPart("its content is not what its name says")
        with _damage():
            self._connection = _connect(path, "mode=ro&immutable=1")

    def find(self, keys: Iterable[bytes]) -> dict[bytes, list[float]]:
        """The numbers of those ``keys`` that the part holds."""
        ask, found = "SELECT numbers FROM scores WHERE key = ?", {}
        with _damage():
            for key in keys:
                row = self._connection.execute(ask, (key,)).fetchone()
                if row is not None:
                    found[key] = unpacked(row[0])
        return found

    def entries(self) -> Iterator[Entry]:
        """All entries by their keys, read as they are asked for."""
        with _damage():
            yield from self._connection.execute("SELECT key, numbers FROM scores ORDER BY key")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def write_part(folder: Path, entries: Iterable[Entry]) -> Path:
    """Write a part, which is complete or absent.

    Args:
        folder: where the part belongs.
        entries: in the order of their keys; of entries with one key, the first is kept.

    Returns:
        The part's file. A part with the same entries has the same name.
    """
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with contextlib.closing(_connect(temporary, "nolock=1")) as connection:
            # Nobody else knows the file, and it is flushed once as a whole.
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute(TABLE)
            connection.execute("BEGIN")
            connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", entries)
            connection.execute("COMMIT")
        flush(temporary)
        path = folder / part_name(temporary)
        os.replace(temporary, path)
        flush(folder)
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(temporary)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def part_name(path: Path) -> str:
    """The name that a file has as a part, which holds a hash of its content."""
    return f"part-{file_digest(path)[:HASH_DIGITS]}.sqlite"


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DamagedPart(str(error)) from error


def _connect(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)
