"""What a process keeps for later: freed memory, and the products that a CPU has compiled.

By default glibc gives freed memory back after each batch, and fresh pages cost a quarter of the
time. Our commands keep it for two seconds, or until a piece of work is done, in one heap for all
threads: the end of another one would never go back. oneDNN compiles a product for each shape, half
a MiB each; they keep few.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # as malloc.h has them
# Blocks from this size on are the system's own, each by itself, and fit where they are freed. It is
# the largest size to which glibc raises its limit by itself.
OWN_PAGES = 32 * 2**20
KEPT = 2**31 - 1  # bytes at the end of the heap that are kept: as many as mallopt takes
# A user's own choice of either is left as it is.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
HEAPS = "MALLOC_ARENA_MAX"  # a user's own choice of the number of heaps, which is left alone too
# How many products oneDNN keeps, and PyTorch's own layer above it. All layers of a model have the
# same few shapes: a batch that is read needs 5, and one that is trained on 21.
PRODUCTS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KEPT_PRODUCTS = 64
PRODUCT_BYTES = 600 << 10  # what one takes in both of them: measured with 135M weights


def keep_freed_memory() -> bool:
    """Use freed memory again in place of fresh pages; whether the allocator can, and was asked.

    It comes before libraries whose threads would begin heaps of their own.
    """
    choose = _of_glibc("mallopt")
    if choose is None or any(name in os.environ for name in VARIABLES):
        return False
    if HEAPS not in os.environ:
        choose(M_ARENA_MAX, 1)
    return bool(choose(M_MMAP_THRESHOLD, OWN_PAGES) and choose(M_TRIM_THRESHOLD, KEPT))


def keep_few_products() -> None:
    """Let oneDNN keep the last few compiled products. It has to come before torch is imported."""
    for name in PRODUCTS:
        os.environ.setdefault(name, str(KEPT_PRODUCTS))


def give_memory_back() -> None:
    """Give the system every whole page that is free, those between blocks in use included."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


class InBetween:
    """Gives memory back after a batch, but not more often than every ``seconds``.

    Batches of different lengths leave holes between blocks in use, which a long piece of work would
    hold until it is done. Each time, the next batches pay for fresh pages.
    """

    def __init__(self, seconds: float = 2.0):
        self.seconds, self._last = seconds, time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= self.seconds:
            give_memory_back()
            self._last = now


def _of_glibc(name: str) -> Callable[..., Any] | None:
    """A function that glibc alone has; musl has a mallopt neither."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "malloc_trim") else None
