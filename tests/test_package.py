"""What importing the package loads, and the names that it has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pad_fast

HEAVY = ("torch", "transformers", "datasets", "triton", "accelerate", "matplotlib")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_the_package_loads_nothing():
    assert modules_after("import pad_fast, pad_fast.cli, pad_fast.kernels") == set()


def test_the_losses_load_torch_alone():
    assert modules_after(
        "from pad_fast import LinearPADLoss, PADLoss, probabilistic_preference_loss, token_logprobs"
    ) == {"torch"}


def test_every_public_name_is_there():
    assert set(pad_fast._HOME) == set(pad_fast.__all__) <= set(dir(pad_fast))
    for name in pad_fast.__all__:
        assert getattr(pad_fast, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'PADTrainr'"):
        _ = pad_fast.PADTrainr


BARE = """
import importlib.abc, os, sys
import pytest, torch

ABSENT = {"datasets", "transformers", "accelerate", "peft", "scipy", "matplotlib", "rich", "trl"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
torch.cuda.is_available = lambda: True  # as on the card, where kernels are compiled
os.environ.pop("TRITON_INTERPRET", None)
sys.exit(pytest.main([*sys.argv[1:], "--collect-only", "-q"]))
"""


def test_make_gpu_checks_collects_where_only_torch_triton_and_pytest_are():
    script = (Path(__file__).parents[1] / "tools" / "gpu_checks.sh").read_text()
    options = re.search(r"-m pytest (-m gpu .*) \"\$@\"", script)[1].split()
    assert "tests/kernels" in script
    found = subprocess.run(
        [sys.executable, "-c", BARE, *options, "tests/kernels"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "test_the_host_never_waits" in found.stdout  # for a GPU alone
    assert "kernels/logprob/test_values.py" in found.stdout  # runs anywhere


FAKE_PYTHON = """#!/bin/sh
case "$*" in *test_flex_attention*|*gpu-longest*) exit 3;; esac
"""


def test_a_gpu_check_that_fails_stops_no_other(tmp_path):
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    command = ["sh", "tools/gpu_checks.sh", str(python)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 1
    results = [re.sub(r" after \d+ s", "", line) for line in done.stdout.splitlines()[-4:]]
    assert results == [
        "FlexAttention's backward: FAILED (exit status 3)",
        "the longest response: FAILED (exit status 3)",
        "peaks of training: passed",
        "kernels: passed",
    ]
    python.write_text("#!/bin/sh")
    assert (
        subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1]).returncode == 0
    )
