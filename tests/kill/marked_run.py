"""A run in a forked process that tells, by a pipe, which place of the run it enters and leaves."""

from __future__ import annotations

import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import first_steps
from tqdm import tqdm

from pad_fast import cli
from pad_fast.pipeline import rounds
from pad_fast.pipeline.score.scorer import Scorer
from pad_fast.training.resumed_log import ResumableLog

# Everything from the start of the command to its first phase, in a resume the checks of what is
# there; the phases; and what is within a phase and has a file of its own at stake.
PLACES = ("open", "sample", "score", "calibrate", "train", "checkpoint", "evaluate", "report")
END = "end"


@dataclass(frozen=True)
class Mark:
    """What a process entered or left, and when.

    Args:
        place: one of :data:`PLACES`, or "end".
        round: the round that it belongs to; 0 before the first.
        enters: whether the process entered it.
        at: time.monotonic() of the parent, in seconds.
    """

    place: str
    round: int
    enters: bool
    at: float


class MarkedRun:
    """``pad-fast run CONFIG`` in a fork, whose marks the parent reads.

    Args:
        config: the YAML file.
        log: a file to which standard output and error are added.
    """

    def __init__(self, config: Path, log: Path) -> None:
        self._pipe, write = os.pipe()
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            os._exit(_child(write, config, log))
        os.close(write)

    def next_mark(self, timeout: float | None = None) -> Mark | None:
        """The next mark; None if none comes within ``timeout`` seconds."""
        while b"\n" not in self._rest:
            if not select.select([self._pipe], [], [], timeout)[0]:
                return None
            data = os.read(self._pipe, 4096)
            if not data:
                return Mark(END, 0, True, time.monotonic())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        place, round, enters = line.decode().split()
        return Mark(place, int(round), enters == "in", time.monotonic())

    def kill(self) -> bool:
        """Kill the process; False if it has ended by itself."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """The exit code of the process, or minus the signal that ended it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._pipe)
        return code


def _child(pipe: int, config: Path, log: Path) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Forks share tqdm's lock, and one that was killed while it held it would stop all others.
    tqdm.set_lock(threading.RLock())
    current = [0]

    def say(place: str, round: int, enters: bool) -> None:
        os.write(pipe, f"{place} {round} {'in' if enters else 'out'}\n".encode())

    def marked(place: str, own: Callable) -> Callable:
        @functools.wraps(own)
        def call(*arguments: Any, **options: Any) -> Any:
            if place in rounds.PHASE_FUNCTIONS:
                current[0] = arguments[1]
            say(place, current[0], True)
            try:
                return own(*arguments, **options)
            finally:
                say(place, current[0], False)

        return call

    for name, own in rounds.PHASE_FUNCTIONS.items():
        rounds.PHASE_FUNCTIONS[name] = marked(name, own)
    first_steps.told(lambda name, step: None)  # but for one that starts over, which ends here
    hooks = [(rounds, "_report", "report"), (Scorer, "_scored_shard", "calibrate")]
    hooks += [(ResumableLog, "_save_checkpoint", "checkpoint")]
    for owner, name, place in hooks:
        setattr(owner, name, marked(place, getattr(owner, name)))
    say("open", 0, True)
    return cli.main(["run", str(config)])
