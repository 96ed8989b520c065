"""Run ``pad-fast run`` again and again, killed at a given place each time.

    python crash.py CONFIG.yaml PLACE [PLACE ...]

Places:
    before:TEXT, after:TEXT  right before or after a file or folder gets its final name, the first
        one whose name contains TEXT
    to:TEXT  when a file whose name contains TEXT is opened for writing

Each training that takes a step prints "training FOLDER begins after step N".

After the last place the command runs to its end. The exit code is 0 if the process was killed at
every place and the last command succeeded. All commands run in forks of one process, so that
everything is imported once.
"""

from __future__ import annotations

import os
import signal
import sys

import first_steps
import torch

from pad_fast import cli
from pad_fast.pipeline import rounds  # noqa: F401  imported before the forks

torch.set_num_threads(1)
cli.leave_imports_to_themselves()
first_steps.told(lambda name, step: print(f"training {name} begins after step {step}", flush=True))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str) -> None:
    when, _, text = place.partition(":")
    own = os.replace

    def replace(source, target):
        hit = text in str(target)
        if hit and when == "before":
            die()
        own(source, target)
        if hit and when == "after":
            die()

    def on_open(event: str, arguments: tuple) -> None:
        if event == "open" and text in str(arguments[0]) and "w" in str(arguments[1]):
            die()

    if when == "to":
        sys.addaudithook(on_open)
    else:
        os.replace = replace


def run(config: str, place: str | None) -> int:
    pid = os.fork()
    if pid == 0:
        if place is not None:
            arm(place)
        os._exit(cli.main(["run", config]))
    return os.waitpid(pid, 0)[1]


def main(config: str, *places: str) -> int:
    for place in places:
        status = run(config, place)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            print(f"the command was not killed at {place}: status {status}")
            return 1
    return os.waitstatus_to_exitcode(run(config, None))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
