"""Runs of ``pad-fast`` on several processes of this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pad_fast.launch.process import NEW_STORE

ROOT = Path(__file__).parents[1]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a run on CPUs, without what a launcher set for the tests themselves."""
    set_by_launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in set_by_launchers}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", NEW_STORE: "1"}
    return {**kept, **fixed, "PYTHONPATH": path, **changes}


def command(ranks: int, *words: object, restarts: int = 0) -> list[str]:
    """The command that starts ``python WORDS`` on so many ranks."""
    what = [*map(str, words)]
    if ranks == 1:
        return [sys.executable, *what]
    flags = ["--standalone", f"--nproc_per_node={ranks}", f"--max_restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *flags, *what]


def script(
    ranks: int, *words: object, ends: int = 0, restarts: int = 0, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python WORDS`` on so many ranks, to its end with the exit code ``ends``."""
    done = subprocess.run(
        command(ranks, *words, restarts=restarts),
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == ends, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run(
    ranks: int, *words: object, ends: int = 0, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run ``pad-fast`` with ``words`` on so many ranks, to its end with the exit code ``ends``."""
    return script(ranks, "-m", "pad_fast", *words, ends=ends, **changes)
