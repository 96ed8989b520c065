"""The memory of a phase does not grow with the rows of its prompts: these are read from disk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from benchmarks import run_phases
from pad_fast.evaluation import intervals
from pad_fast.files import own_files, stored_rows
from pad_fast.pipeline import parquet_rows
from pad_fast.training import prepared_rows

PROMPTS = 32, 64, 1024  # the first time loads modules
BUFFER = 16  # rows at a time, in place of thousands
MOST = 1500  # bytes that a prompt may add to the peak; its rows of responses take 4,000


def peaks(folder: Path, prompts: int) -> dict[str, int]:
    """The peak of Python's own memory in each phase, beyond what was there before, in bytes."""
    run_phases.write_world(folder, prompts)
    found = {}
    for name, do in run_phases.PHASES.items():
        tracemalloc.start()
        do(folder)
        found[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


@pytest.fixture(scope="module")
def growth(tmp_path_factory) -> dict[str, float]:
    """By phase, the bytes that a prompt adds to the peak, with buffers of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (parquet_rows, "TABLE_ROWS"),
            (parquet_rows, "KEPT_ROWS"),
            (own_files, "ROWS_AT_A_TIME"),
            (stored_rows, "BATCH"),
            (prepared_rows, "TOGETHER"),
            (intervals, "AT_ONCE"),
        ):
            patch.setattr(module, name, BUFFER)
        patch.setitem(run_phases.CONFIG, "shard_size", BUFFER)
        patch.setitem(run_phases.CONFIG, "per_device_train_batch_size", 2)
        patch.setattr(run_phases, "TRAINED_PROMPTS", BUFFER)
        _, few, many = (peaks(tmp_path_factory.mktemp("run"), count) for count in PROMPTS)
    return {name: (many[name] - few[name]) / (PROMPTS[2] - PROMPTS[1]) for name in few}


@pytest.mark.long
@pytest.mark.parametrize("phase", run_phases.PHASES)
def test_the_rows_of_a_phase_are_not_in_memory_together(phase, growth):
    assert growth[phase] < MOST
