"""The examples run and print what they promise."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from students import RENAMED

pytestmark = RENAMED


@pytest.mark.parametrize("name", ["bare_loop", "listwise_losses", "transformers_trainer"])
def test_examples(name):
    """After training, the student ranks new groups as the teacher does."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    before, after = runpy.run_path(str(path))["main"]()
    assert before < 0.4
    assert after > 0.8


def example_output(code: str) -> tuple[int, str, str]:
    folder = Path(__file__).parents[1] / "examples"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "trl_trainer.py")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_example_in_trl():
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    status, output, errors = example_output(
        "import runpy, sys; print('taus', *runpy.run_path(sys.argv[1])['main']())"
    )
    assert status == 0, errors
    before, after = map(float, output.rpartition("taus")[2].split())
    assert before < 0.4
    assert after > 0.8


def test_the_example_in_trl_says_what_it_needs():
    status, _, errors = example_output(
        "import runpy, sys; sys.modules['trl'] = None; runpy.run_path(sys.argv[1])"
    )
    assert status == 1
    assert errors.strip().endswith(
        "this example needs TRL, which is not installed: pip install trl"
    )
