"""Ctrl-C and SIGTERM: both end a command by an exception that is raised until it arrives."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 2.0  # seconds


class Interrupts:
    """Raises KeyboardInterrupt in the block at Ctrl-C and SIGTERM, again and again until it ends.

    A library may swallow the exception: Python does it in ``__del__`` and in callbacks of compiled
    code. It is therefore raised again every two seconds while the block still runs. Signals that
    are ignored, as in a job that a shell started in the background, stay ignored.

    Args:
        again: seconds between two times.

    Attributes:
        number: the signal that arrived, None before.
    """

    def __init__(self, again: float = AGAIN) -> None:
        self.again = again
        self.number: int | None = None
        self._ended, self._process = threading.Event(), os.getpid()
        self._before: dict[int, Any] = {}
        self._hook: Callable[[Any], Any] = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            sys.unraisablehook = self._hook

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker ends as it would have without us
            signal.signal(number, self._before.get(number, signal.SIG_DFL))
            signal.raise_signal(number)
            return
        if self.number is None:
            self.number = number
            threading.Thread(target=self._repeat, daemon=True).start()
        raise KeyboardInterrupt

    def _repeat(self) -> None:
        while not self._ended.wait(self.again):
            _thread.interrupt_main(signal.Signals(self.number or signal.SIGINT))

    def _swallowed(self, unraisable: Any) -> None:
        """Say nothing of an interrupt that was swallowed, since it comes again."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook(unraisable)
