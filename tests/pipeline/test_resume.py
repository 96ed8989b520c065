"""A killed run resumes where it stopped.

Nothing that was finished is done again, and the result is the same to the last bit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import worlds
from worlds import contents

from pad_fast.files.stored_rows import SCRATCH

CRASH = Path(__file__).parents[1] / "crash.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PLACES = [
    "before:run/run.json",  # the prompts are written, the manifest is not
    "after:heldout/samples/part-00000",
    "before:round-01/samples/part-00001",
    "after:round-01/samples/part-00002",
    "after:teacher_cache/part-",  # some log-probabilities are kept, but no shard
    "before:heldout/groups/part-00001",
    "after:round-01/scores/part-00001",
    "to:trainer/checkpoint-1/trainer_state.json",  # a checkpoint without its state is incomplete
    "to:trainer/checkpoint-2/config.json",
    "before:round-01/student",  # trained and saved under its temporary name
    "after:round-01/student",
    "after:samples/student-01/greedy/part-00000",
    "before:evaluation/student-01.json",
    "after:round-02/scores/part-00003",
    "before:seqkd/student",
    "after:evaluation/seqkd.json",
    "before:report/index.html",
]


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(start(CRASH, worlds.write_config(folder, rounds=2, baseline="seqkd")))
    return folder


@pytest.mark.slow
def test_killed_everywhere_the_result_is_the_same(uninterrupted, tmp_path):
    config = worlds.write_config(tmp_path, rounds=2, baseline="seqkd")
    begun = re.findall(
        "training (.*) begins after step (.*)", finish(start(CRASH, config, *PLACES))
    )
    # It was killed while the first checkpoint was written, then the second, which was not whole.
    first = [("round-01", "0"), ("round-01", "0"), ("round-01", "1")]
    assert begun == [*first, ("round-02", "0"), ("seqkd", "0")]
    expected, found = contents(uninterrupted / "run"), contents(tmp_path / "run")
    assert len(expected) > 40
    assert found == expected
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert _logged(tmp_path) == _logged(uninterrupted)


def _logged(folder: Path) -> list[tuple]:
    """The lines of the metrics, each of which a resumed run has once."""
    lines = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        (line["round"], line["phase"], line["step"], line.get("loss"), line.get("logps/mean"))
        for line in lines
    ]


@pytest.mark.slow
def test_a_killed_command_leaves_finished_shards_alone(uninterrupted, tmp_path):
    """The command itself, killed from outside in the middle of sampling."""
    config = worlds.write_config(tmp_path, rounds=2, baseline="seqkd", shard_size=2)
    command = [sys.executable, "-m", "pad_fast.cli", "run", str(config)]
    shard = tmp_path / "run" / "round-01" / "samples" / "part-00000.parquet"
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not shard.exists():
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert shard.exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("part-*.parquet")}
    assert not (tmp_path / "run" / "round-01" / "student").exists()
    finish(start("-m", "pad_fast.cli", "run", config))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(tmp_path / "run") == contents(uninterrupted / "run")
    assert not (tmp_path / "run" / SCRATCH).exists()
