"""``pytest benchmarks/`` runs, in its small form: also with what is compiled and with all peers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One compiled case; the others would compile for seconds each.
SELECTED = (
    "not torch.compile and not pad_fast_compile and not chunked"
    " or torch.compile and response_rewards"
)


@pytest.mark.slow
def test_the_small_suite_runs_through_pytest_benchmark():
    """Whatever a peer warns of, a case passes, or is skipped because a peer does not do it."""
    # It is no worker of the tests' own pytest-xdist, whose benchmarks would be turned off.
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    environment = {**own, "PAD_FAST_BENCHMARK": "smoke", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"),
            *("-k", SELECTED, "--benchmark-disable-gc", "--benchmark-columns=min"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20
