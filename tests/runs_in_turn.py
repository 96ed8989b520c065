"""``python runs_in_turn.py CONFIG ...``: runs one after the other in one process, without reports.

The pictures of a report take longer than the rest of a small run.

Killing:

Variables of the environment kill a process on its way: KILLED_AT_STEP after a step of a training,
KILLED_IN where a phase has done its first shard or step; KILLED_RANK is the rank that it concerns,
and KILLED_MARK a file that lets it happen once. In a phase whose shards are shared out, the other
ranks keep their first shard back until it has happened: a quick one could otherwise take every
shard before the other has begun.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import first_steps

from pad_fast import cli, report

FOLDERS = {"sample": "samples", "score": "scores", "evaluate": "evaluation"}


def main(configs: list[str]) -> int:
    first_steps.told(lambda name, step: print(f"training {name} begins after step {step}"))
    report.write_report = lambda root: Path(root) / "report" / "index.html"
    if os.environ.get("RANK", "0") == os.environ.get("KILLED_RANK", "0"):
        _kill_on_the_way()
    elif os.environ.get("KILLED_IN") in FOLDERS:
        _let_it_happen()
    codes = [cli.main(["run", config]) for config in configs]
    return max(codes)


def kill() -> None:
    mark = os.environ.get("KILLED_MARK")
    if mark is not None:
        if Path(mark).exists():
            return
        Path(mark).write_text("killed")
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_on_the_way() -> None:
    from pad_fast.pipeline.sample import shards
    from pad_fast.pipeline.train.train_round import MetricsLines

    step, place = os.environ.get("KILLED_AT_STEP"), os.environ.get("KILLED_IN")
    if place == "train":
        step = "1"
    if step is not None:
        own = MetricsLines.on_log

        def on_log(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            own(self, args, state, *rest, **kwargs)
            if self.phase == "train" and state.global_step == int(step) + 1:
                kill()

        MetricsLines.on_log = on_log
    elif place in FOLDERS:
        write = shards.write_rows

        def write_rows(path: Path, *rest: Any) -> None:
            write(path, *rest)
            if FOLDERS[place] in path.parts:
                kill()

        shards.write_rows = write_rows


def _let_it_happen() -> None:
    """Wait before a shard of the phase is written, until the other rank has been killed."""
    from pad_fast.pipeline.sample import shards

    write, folder = shards.write_rows, FOLDERS[os.environ["KILLED_IN"]]

    def write_rows(path: Path, *rest: Any) -> None:
        if folder in path.parts:
            deadline = time.monotonic() + 120
            while not Path(os.environ["KILLED_MARK"]).exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no rank was killed in {folder}")
                time.sleep(0.05)
        write(path, *rest)

    shards.write_rows = write_rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
