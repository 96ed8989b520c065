"""One process at a time works in a run folder, and another one changes nothing in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import failing
from filelock import Timeout
from worlds import changed_config

from pad_fast import cli
from pad_fast.pipeline.benchmark.folder import BenchmarkFolder
from pad_fast.pipeline.folder_lock import locked

HOLD = """
import sys, time
from pathlib import Path
from pad_fast.pipeline.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""
# A loader with a worker that sleeps while it fetches, in a process that holds the lock.
FORKING = """
import os, sys, time
from pathlib import Path
import torch
from torch.utils.data import DataLoader, Dataset
from pad_fast.pipeline.folder_lock import locked

class Slow(Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, index):
        print(os.getpid(), flush=True)
        time.sleep(100)

with locked(Path(sys.argv[1])):
    next(iter(DataLoader(Slow(), num_workers=1, multiprocessing_context="fork")))
"""


def started(code: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file and folder was changed, and what the files hold."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in paths
    }


def test_a_refused_command_changes_nothing(world, tmp_path, capsys):
    config, run = changed_config(world, tmp_path, num_generations=2), tmp_path / "run"
    assert cli.main(["sample", str(config)]) == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "st')  # half a line, which the holder is writing
    with started(HOLD, run) as holder:
        assert holder.stdout.readline() == "held\n"
        before = state(run)
        for command in ("run", "sample", "score", "train", "evaluate", "report"):
            error = failing(capsys, command, config)
            assert f"another pad-fast works in {run}: process {holder.pid} on" in error
            assert ", since 20" in error
        assert state(run) == before
        holder.kill()
    # The lock died with its holder, though the file that names it is still there.
    assert (run / ".lock-holder.json").exists()
    assert cli.main(["sample", str(config)]) == 0
    assert not (run / ".lock-holder.json").exists()


def test_a_holder_that_is_not_known_is_not_named(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock-holder.json").write_text("{")
        with pytest.raises(ValueError, match=rf"works in {tmp_path}; wait until it ends"):
            locked(tmp_path).__enter__()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_worker_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    with started(FORKING, tmp_path) as holder:
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(ValueError, match=f"process {holder.pid} on"):
                locked(tmp_path).__enter__()
            holder.kill()
            holder.wait()
            os.kill(worker, 0)  # it lives
            with locked(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_link_is_not_followed(tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(ValueError, match=r"output_dir: .*\.lock is a symbolic link, which is not"):
        locked(tmp_path / "run").__enter__()
    assert target.read_text() == "mine"


def test_the_holder_stands_next_to_the_lock(tmp_path):
    with locked(tmp_path):
        known = json.loads((tmp_path / ".lock-holder.json").read_text())
        assert known["process"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_timeout_inside_of_a_benchmarks_lock_is_no_other_process(tmp_path):
    """datasets and the hub's cache lock files too."""
    with pytest.raises(Timeout), BenchmarkFolder(tmp_path).locked():
        raise Timeout("a file of the hub's cache")
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=f"process {os.getpid()} on"),
        BenchmarkFolder(tmp_path).locked(),
    ):
        pass
