"""``python differing_ranks.py CONFIG FOLDER``: runs in turn, in each of which rank 1 differs.

What a rank says in a run is left in FOLDER/RUN-RANK.txt. All runs are of one start, since most of
the time goes into the imports of the processes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pad_fast import cli
from pad_fast.pipeline import rank_checks, run

DIFFERS = os.environ["RANK"] == "1"


def other_version(_: Path) -> None:
    known: Callable[[], dict[str, Any]] = rank_checks.versions
    if DIFFERS:
        rank_checks.versions = lambda: {**known(), "torch": "1.0"}


def usual_version(_: Path) -> None:
    rank_checks.versions = cli_versions


def same_gpu(folder: Path) -> None:
    """Both ranks have one GPU, as where more processes are started than there are."""
    usual_version(folder)
    rank_checks.gpu_identity = lambda device: "GPU-7"


def other_gpus(_: Path) -> None:
    rank_checks.gpu_identity = lambda device: f"GPU-{os.environ['RANK']}"


def other_folder(folder: Path) -> None:
    """Rank 1 does not see what rank 0 writes, which then waits for it until it is ended."""
    other_gpus(folder)
    rank_checks.check_shared_folder.__defaults__ = (2.0,)
    known = run.RunFolder
    if DIFFERS:
        run.RunFolder = lambda root: known(folder / "elsewhere")


cli_versions = rank_checks.versions
RUNS: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "bad": (["--learning_rate", "-1"], usual_version),
    "settings": (["--temperature", "0.5"] if DIFFERS else [], usual_version),
    "versions": ([], other_version),
    "gpus": ([], same_gpu),
    "folder": ([], other_folder),
}


def main(config: str, folder: Path) -> int:
    codes = []
    for name, (words, change) in RUNS.items():
        change(folder)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            codes.append(cli.main(["run", config, *words]))
        (folder / f"{name}-{os.environ['RANK']}.txt").write_text(said.getvalue())
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
