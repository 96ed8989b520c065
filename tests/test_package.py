"""What importing the package costs, and what it offers."""

import subprocess
import sys

import pytest

import pad_fast

HEAVY = ("torch", "transformers", "datasets", "triton", "accelerate", "matplotlib")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing():
    assert modules_after("import pad_fast, pad_fast.cli, pad_fast.kernels") == set()


def test_the_losses_load_torch_alone():
    assert modules_after("from pad_fast import LinearPADLoss, PADLoss, probabilistic_preference_loss, token_logprobs") == {"torch"}


def test_every_public_name_is_there():
    assert set(pad_fast._HOME) == set(pad_fast.__all__) <= set(dir(pad_fast))
    for name in pad_fast.__all__:
        assert getattr(pad_fast, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'PADTrainr'"):
        _ = pad_fast.PADTrainr
