"""A time limit on a program of somebody else's that runs in this thread, such as a template."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL = 0.2  # seconds between two looks at the clock


class TookTooLong(Exception):
    """What is raised inside of a program that exceeds its time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TookTooLong` in what runs inside for longer than so many seconds.

    It works in every thread, unlike a signal, and costs microseconds. The exception arrives before
    the next instruction of Python: a single call into C that never returns is not interrupted.
    """
    thread = threading.get_ident()
    _watch.begin(thread, time.monotonic() + seconds)
    try:
        yield
    finally:
        _watch.end(thread)


class _Watch:
    """A thread that looks at the deadlines of others while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}
        self._running = False

    def begin(self, thread: int, deadline: float) -> None:
        with self._lock:
            self._deadlines[thread] = deadline
            if not self._running:
                self._running = True
                threading.Thread(target=self._look, name="time_limit", daemon=True).start()

    def end(self, thread: int) -> None:
        with self._lock:
            self._deadlines.pop(thread, None)

    def _look(self) -> None:
        while True:
            time.sleep(POLL)
            with self._lock:
                if not self._deadlines:
                    self._running = False
                    return
                now = time.monotonic()
                for thread in [thread for thread, end in self._deadlines.items() if end < now]:
                    del self._deadlines[thread]
                    _raise_in(thread)


def _raise_in(thread: int) -> None:
    kind = ctypes.py_object(TookTooLong)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind)


_watch = _Watch()
if hasattr(os, "register_at_fork"):  # a process that was forked has none of the other threads
    os.register_at_fork(after_in_child=_watch.__init__)  # type: ignore[misc]
