"""The lock of a run folder: one process at a time works in it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pad_fast.files.own_files import read_json, write_json

LOCK, HOLDER = ".lock", ".lock-holder.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock inside the block. It ends with the process, however that ends.

    The file ``.lock`` is empty. Next to it stands who holds it, for the message to others.

    Raises:
        ValueError: another process holds it, or ``.lock`` is a symbolic link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"output_dir: another pad-fast works in {folder}{_holder(folder)}; wait until it ends, "
            "or give another output_dir"
        ) from None
    except OSError as error:
        if error.errno != errno.ELOOP and not (folder / LOCK).is_symlink():
            raise
        raise ValueError(
            f"output_dir: {folder / LOCK} is a symbolic link, which is not followed; remove it"
        ) from None
    try:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        own = {"process": os.getpid(), "host": platform.node(), "since": now}
        write_json(folder / HOLDER, own)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """Who holds the lock, as far as that is known."""
    try:
        known = read_json(folder / HOLDER)
        return f": process {known['process']} on {known['host']}, since {known['since']}"
    except (OSError, ValueError, KeyError):
        return ""
