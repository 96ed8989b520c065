"""Files and folders that are complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

WINDOWS = os.name == "nt"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces ``path`` on success.

    If the block raises, what was written is removed and ``path`` stays as it was. A folder that is
    replaced is removed after the new one has its name, so that a kill never leaves neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    _remove(temporary)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")) if temporary.is_dir() else ():
            flush(file)
        flush(temporary)
        if path.is_dir():
            _remove(old)
            path.rename(old)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # which the system's errors of writing lack
        _remove(temporary)
        if old.is_dir() and not path.exists():
            old.rename(path)
        raise
    _remove(old)


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, from the system's memory to the disk."""
    if WINDOWS and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
