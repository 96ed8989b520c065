"""A cache on disk for the teacher's numbers, which many runs may read and write at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from pad_fast.pipeline.score.cache_part import NAMES, DamagedPart, Part, packed, write_part

Question = TypeVar("Question")
logger = logging.getLogger("pad_fast")

MERGED = 16  # parts of one size that become one
SMALLEST = 1 << 16  # bytes; parts below it are of one size
UNREADABLE = (errno.ENOENT, errno.ESTALE, errno.EIO)
STALE = 86_400  # seconds after which a writer's temporary file is taken for abandoned


class ScoreCache:
    """The teacher's numbers, keyed by the teacher and the exact tokens that it read.

    What was computed for another run or round, for an equal response or before a run was killed is
    found again. Every :meth:`add` writes one part, a file that never changes. Many small parts are
    merged into a larger one, which is complete before they are removed. Readers take no lock; a
    part that is damaged is set aside, and what was in it is asked again.

    Args:
        folder: of the parts.
        source: names what the numbers come from: the teacher's weights, their data type, and the
            engine. Numbers of other sources are not found.
    """

    def __init__(self, folder: Path, source: str = "") -> None:
        self.folder = folder
        self._source = hashlib.sha256(source.encode())
        self._open: dict[str, Part] = {}

    def key(self, kind: str, *tokens: Sequence[int]) -> bytes:
        """The key of a question of one kind about sequences of token ids."""
        digest = self._source.copy()
        digest.update(kind.encode())
        for ids in tokens:
            digest.update(b"%d:" % len(ids) + np.asarray(ids, "<i8").tobytes())
        return digest.digest()

    def find(self, keys: Collection[bytes]) -> dict[bytes, list[float]]:
        """The numbers of those keys that the cache holds."""
        wanted, found = set(keys), {}
        for part in self._parts():
            with self._setting_aside(part.path):
                some = part.find(wanted)
                found.update(some)
                wanted.difference_update(some)
            if not wanted:
                break
        return found

    def known_or(
        self,
        wanted: Mapping[bytes, Question],
        ask: Callable[[list[Question]], Sequence[Sequence[float]]],
        progress: Callable[[int], object] = lambda count: None,
    ) -> dict[bytes, Sequence[float]]:
        """The numbers of all keys; those that the cache lacks are asked for and kept.

        Args:
            wanted: what each key is about.
            ask: gives the numbers of those that are missing, if any are.
            progress: called with the number of those that the cache holds, before it is asked.
        """
        known: dict[bytes, Sequence[float]] = {**self.find(wanted)}
        progress(len(known))
        missing = {key: about for key, about in wanted.items() if key not in known}
        if missing:
            new = dict(zip(missing, ask(list(missing.values())), strict=True))
            self.add(new)
            known |= new
        return known

    def add(self, numbers: Mapping[bytes, Sequence[float]]) -> None:
        """Keep numbers, under keys that :meth:`key` gives.

        Raises:
            ValueError: one of them is not finite.
        """
        for values in numbers.values():
            if not all(map(math.isfinite, values)):
                raise ValueError(f"values must be finite to be kept, got {list(values)}")
        if numbers:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_part(self.folder, ((key, packed(numbers[key])) for key in sorted(numbers)))
            self._merge()

    def close(self) -> None:
        """Close the files."""
        for name in list(self._open):
            self._open.pop(name).close()

    def _parts(self) -> Iterator[Part]:
        """The parts in the folder, the largest first, each checked when it is first seen."""
        paths = {path.name: path for path in self.folder.glob(NAMES)}
        for name in self._open.keys() - paths.keys():
            self._open.pop(name).close()  # it was merged into another, or removed
        for name in paths.keys() - self._open.keys():
            with self._setting_aside(paths[name]):
                self._open[name] = Part(paths[name])
        yield from sorted(self._open.values(), key=lambda part: (-part.size, part.path.name))

    @contextlib.contextmanager
    def _setting_aside(self, path: Path) -> Iterator[None]:
        """Rename a part that cannot be read inside the block, unless it is gone by now."""
        try:
            yield
        except (DamagedPart, OSError) as error:
            if isinstance(error, OSError) and error.errno not in UNREADABLE:
                raise
            if part := self._open.pop(path.name, None):
                part.close()
            if not path.exists():  # another run merged it, or somebody removed it
                return
            aside = path.with_name(f"{path.name}.damaged")
            logger.warning(
                "score cache: %s is damaged (%s); it is set aside as %s, and what was in it is "
                "asked again",
                path,
                error,
                aside.name,
            )
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, aside)

    def _merge(self) -> None:
        """Merge parts of one size into one, where there are many."""
        by_size: dict[int, list[Part]] = {}
        for part in self._parts():
            by_size.setdefault(size_class(part.size), []).append(part)
        for parts in by_size.values():
            if len(parts) >= MERGED:
                self._merge_into_one(parts)
        self.tidy(STALE)

    def tidy(self, seconds: float) -> None:
        """Remove what killed writers left that is older than so many seconds.

        With 0 it removes all, for a folder that no other process writes to.
        """
        for path in self.folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if seconds == 0 or time.time() - path.stat().st_mtime > seconds:
                    path.unlink()

    def _merge_into_one(self, parts: Sequence[Part]) -> None:
        try:
            merged = write_part(self.folder, heapq.merge(*(part.entries() for part in parts)))
        except DamagedPart:  # the next look-up finds out which of them is damaged
            return
        for part in parts:
            self._open.pop(part.path.name).close()
            if part.path != merged:
                part.path.unlink(missing_ok=True)


def size_class(size: int) -> int:
    """The size of a part, in steps of :data:`MERGED` times as many bytes."""
    return max(0, math.ceil(math.log(size / SMALLEST, MERGED)))


def check_writable(folder: Path) -> None:
    """Make the folder of a shared cache and write to it.

    Raises:
        ValueError: that cannot be done.
    """
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"score_cache: must be a folder that this run can write to, and {folder} is not "
            f"({error.strerror}); give another one or leave score_cache out"
        ) from None
