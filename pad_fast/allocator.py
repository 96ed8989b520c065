"""What the C library keeps of freed memory, as far as glibc lets a process choose.

A model asks for the same blocks in every batch. By default glibc gives the end of its heap
back after each, and fresh pages, full of zeros, take a quarter of the time. A command of ours keeps
what is freed, and gives it back when a piece of work is done, with the holes between blocks that
live on. Elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
# Blocks from this size on are the system's own, each by itself, and fit where they are freed. It is
# the largest size to which glibc raises its limit by itself.
OWN_PAGES = 32 * 2**20
KEPT = 2**31 - 1  # bytes at the end of the heap that are kept: as many as mallopt takes
# A user's own choice of either is left as it is.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Use freed memory again in place of fresh pages; whether the allocator can, and was asked."""
    choose = _of_glibc("mallopt")
    if choose is None or any(name in os.environ for name in VARIABLES):
        return False
    return bool(choose(M_MMAP_THRESHOLD, OWN_PAGES) and choose(M_TRIM_THRESHOLD, KEPT))


def give_memory_back() -> None:
    """Give the system every whole page that is free, those between blocks in use included."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., Any] | None:
    """A function that glibc alone has; musl has a mallopt neither."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "malloc_trim") else None
