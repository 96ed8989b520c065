"""The planner's peaks against the resident memory of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planning import MANY, near, real_model, setting, step

from benchmarks.memory import resident_peak
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.steps import GroupShape, TrainingOptions


def process_peaks() -> None:
    """Print estimates and peaks of the resident memory as JSON; the test below runs it."""
    torch.set_num_threads(1)
    found = {}
    for name in ("llama-long", "llama-vocabulary", "gemma2-long"):
        config, prompt, response = setting(name, hidden_size=128, intermediate_size=512)
        step(real_model(config), (2, 2, 2))  # libraries allocate memory at first use
        estimate = footprint.training_step(
            config,
            1,
            GroupShape(prompt, response, MANY),
            TrainingOptions(checkpointing=False, optimizer_bytes=0),
        ).peak
        found[name] = (
            estimate,
            resident_peak(
                lambda c=config, p=prompt, r=response: step(real_model(c), (p, r, MANY)) or ()
            ),
        )
    print(json.dumps(found))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_of_the_process():
    """The resident memory follows what is freed, once glibc's threshold is fixed.

    By default glibc raises the size from which freed memory goes back at once.
    """
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONPATH": f"{root}:{root / 'tests'}:{root / 'tests' / 'footprint'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "import test_process_peak; test_process_peak.process_peaks()",
    ]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert output.returncode == 0, output.stderr
    for estimate, measured in json.loads(output.stdout.splitlines()[-1]).values():
        near(estimate, measured, 0.2)
