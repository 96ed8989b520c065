"""What each piece of a run's work took: seconds, tokens and peak memory, a line of costs.jsonl.

A piece has the title of its progress bar, which is also its name in a plan. One that is done in
several stretches, since the run was stopped, has several lines; a stretch that was killed has none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pad_fast.allocator import give_memory_back
from pad_fast.device import default_device, forget_peak_allocated, is_gpu, peak_allocated
from pad_fast.files import process_memory
from pad_fast.files.own_files import add_json_line
from pad_fast.pipeline.ranks import ALONE, Ranks
from pad_fast.report.costs import COSTS


@dataclass
class Work:
    """One stretch of a piece of work.

    Attributes:
        title: of the piece.
        unit: what is counted, such as "response".
        count: how many were done, by all ranks.
        tokens: that were made or read for them.
        seconds: on the main rank, without the pieces inside such as the loading of weights.
        peak: bytes, the most on any rank: those that PyTorch allocated on a GPU, and on a CPU the
            process's resident memory. None where the system does not say.
    """

    title: str
    unit: str
    count: int = 0
    tokens: int = 0
    seconds: float = 0.0
    peak: int | None = None

    def add(self, count: int, tokens: int = 0) -> None:
        """Count what was done."""
        self.count, self.tokens = self.count + count, self.tokens + tokens


@dataclass
class CostLog:
    """The lines of costs.jsonl.

    Args:
        path: of the file.
        writes: whether this process writes, as the main rank does.
    """

    path: Path
    writes: bool = True
    _open: list[Work] = field(default_factory=list)
    _since: float = 0.0
    _begun: dict[str, float] = field(default_factory=dict)  # seconds that no line has yet

    @contextlib.contextmanager
    def measured(self, work: Work, ranks: Ranks) -> Iterator[Work]:
        """Measure what is done inside the block, and write a line if anything was counted.

        Otherwise the time is that of the next stretch of the same title, as the loading of a
        tokenizer is a part of the loading of its model.
        """
        self._turn_to(work)
        try:
            yield work
            self._close()
            counts = ranks.gather([work.count, work.tokens, work.peak])
            work.count, work.tokens = (sum(found[i] for found in counts) for i in (0, 1))
            work.peak = max((found[2] for found in counts if found[2]), default=None)
        except BaseException:
            if work in self._open:
                self._close()
            raise
        finally:
            work.seconds += self._begun.pop(work.title, 0.0)
            if not work.count:
                self._begun[work.title] = work.seconds
            elif self.writes:
                line = {**asdict(work), "seconds": round(work.seconds, 4)}
                add_json_line(self.path, line)

    def _turn_to(self, work: Work) -> None:
        self._pause()
        self._open.append(work)

    def _close(self) -> None:
        self._pause()
        self._open.pop()

    def _pause(self) -> None:
        """Charge the time and the peak since the last call to the innermost piece."""
        now = time.monotonic()
        if self._open:
            work, peak = self._open[-1], peak_memory()
            work.seconds += now - self._since
            work.peak = max(filter(None, (work.peak, peak)), default=None)
        self._since = now
        begin_peak()


_log: ContextVar[CostLog | None] = ContextVar("cost_log", default=None)


@contextlib.contextmanager
def recording(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep what is measured inside the block in a run's folder."""
    token = _log.set(CostLog(folder / COSTS, writes=ranks.is_main))
    try:
        yield
    finally:
        _log.reset(token)


@contextlib.contextmanager
def measured(title: str, unit: str, ranks: Ranks = ALONE) -> Iterator[Work]:
    """Measure a piece of work, and keep it if a run's folder is open.

    Args:
        title: of its progress bar.
        unit: what is counted.
        ranks: those that work on it together. All of them have to come here.
    """
    log, work = _log.get(), Work(title, unit)
    if log is None:
        yield work
        return
    with log.measured(work, ranks):
        yield work


def peak_memory() -> int | None:
    """The most bytes since :func:`begin_peak`, see :class:`Work`."""
    device = default_device()
    return peak_allocated(device) if is_gpu(device) else process_memory.resident("VmHWM")


def begin_peak() -> None:
    """Begin a new peak with what is in use now: what is only kept for later goes to the system."""
    device = default_device()
    if is_gpu(device):
        forget_peak_allocated(device)
    else:
        give_memory_back()
        process_memory.forget_peak()
