"""The bar of some work: one line that moves on a terminal, else a line now and then.

Rich keeps the line at the bottom of the terminal, below whatever is printed or logged meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pad_fast.progress.work import Work, fitted
from pad_fast.terminal import console

TICK = 0.5  # seconds between two looks at the work
EVERY, LEAST = 30.0, 15.0  # seconds between two lines of one bar, and between any two lines


class Lines:
    """The lines that are written where there is no terminal, at most four a minute.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self._last = clock, float("-inf")

    def offer(self, text: str, since: float) -> None:
        """Write a line if the last one is at least ``since`` seconds old."""
        now = self.clock()
        if now - self._last >= since:
            self._last = now
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


LINES = Lines()


class Bar:
    """Shows how far some work has come, from the beginning of a block to its end.

    On a terminal the line is drawn twice a second, so that its time moves while the work is at one
    long piece. Elsewhere a line is written at the beginning, each half minute, and at the end, at
    least 15 seconds after the last line of any bar.

    Args:
        title: the work's name.
        unit: what is counted, such as "response".
        total: how much there is; None if that is not known yet.
        done: how much was done before.
        quiet: whether to show nothing.
        lines: what writes where there is no terminal.

    Example:
        >>> with Bar("sample", "response", 3, quiet=True) as bar:
        ...     bar.move_to(2)
    """

    def __init__(
        self,
        title: str,
        unit: str = "",
        total: int | None = None,
        done: float = 0,
        *,
        quiet: bool = False,
        lines: Lines = LINES,
    ) -> None:
        self.quiet, self._lines = quiet, lines
        self.work = Work(title, unit, total, done, lines.clock())
        self._ended, self._live = threading.Event(), None if quiet else _line_of(self._line)
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def move_to(self, done: float) -> None:
        """Set how much is done."""
        self.work.move_to(self._lines.clock(), done)

    def count_tokens(self, total: int) -> None:
        """Set how many tokens were made or read so far, for the rate."""
        self.work.add_tokens(self._lines.clock(), total)

    def note(self, text: str) -> None:
        """Set the remark at the end of the line."""
        self.work.note = text

    def tick(self) -> None:
        """Show what is known now: a thread calls this while the bar stands."""
        if self._live is not None:
            self._live.refresh()
        elif not self.quiet:
            self._say(EVERY)

    def __enter__(self) -> Bar:
        STANDING.append(self)
        if not self.quiet:
            if self._live is not None:
                self._live.start(refresh=True)
            else:
                self._say(LEAST)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        STANDING.remove(self)
        if self.quiet:
            return
        self._ended.set()
        self._thread.join()
        if self._live is not None:
            self._live.transient = self.work.total is None
            self._live.stop()
        else:
            self._say(LEAST)

    def _watch(self) -> None:
        while not self._ended.wait(TICK):
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self.tick()

    def _say(self, since: float) -> None:
        self._lines.offer(self.work.sentence(self._lines.clock()), since)

    def _line(self, width: int) -> Text:
        return fitted(self.work, self._lines.clock(), width)


STANDING: list[Bar] = []


class _Line(Live):
    """A line at the bottom of a terminal. Loggers write above it, like all that is printed.

    Args:
        shown: the terminal.
        line: what stands in the line, of so many columns.
    """

    def __init__(self, shown: Console, line: Callable[[int], Text]) -> None:
        self._line, self._width = line, lambda: shown.width
        self._moved: list[logging.StreamHandler] = []
        # Standard output may be a file, which gets what is printed as it is.
        super().__init__(console=shown, auto_refresh=False, redirect_stdout=sys.stdout.isatty())

    def get_renderable(self) -> Text:
        return self._line(self._width())

    def start(self, refresh: bool = False) -> None:
        stream = sys.stderr
        super().start(refresh)
        self.console.show_cursor(True)  # a run that is killed would leave none
        self._moved = [handler for handler in _handlers() if handler.stream is stream]
        self._move_handlers()

    def stop(self) -> None:
        super().stop()
        self._move_handlers()

    def _move_handlers(self) -> None:
        """Let loggers that took hold of standard error earlier write to what it is now."""
        for handler in self._moved:
            handler.setStream(sys.stderr)


def _handlers() -> Iterator[logging.StreamHandler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                yield handler


def _line_of(line: Callable[[int], Text]) -> _Line | None:
    """A line at the bottom of the terminal that standard error is; None if it is none."""
    shown = console(stderr=True, force_jupyter=False)
    drawn = sys.stderr.isatty() and shown.is_terminal and not shown.is_dumb_terminal
    return _Line(shown, line) if drawn else None


def quiet_libraries() -> None:
    """Turn off the bars of other libraries where they would fill a log with carriage returns."""
    if sys.stderr.isatty():
        return
    import datasets
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Say on the bar that stands, if one does, what is going on inside a block.

    Args:
        what: such as "loading the teacher".
    """
    bar = STANDING[-1] if STANDING else None
    before = bar.work.note if bar is not None else ""
    if bar is not None:
        bar.note(what)
    try:
        yield
    finally:
        if bar is not None:
            bar.note(before)
