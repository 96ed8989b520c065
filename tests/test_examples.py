"""The examples run and print what they promise."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from students import RENAMED

pytestmark = RENAMED
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["bare_loop", "listwise_losses", "transformers_trainer"])
def test_examples(name):
    """After training, the student ranks new groups as the teacher does."""
    before, after = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert before < 0.4
    assert after > 0.8


def test_the_example_from_text_to_loss():
    """The loss falls on prompts that were not trained on."""
    before, after = runpy.run_path(str(EXAMPLES / "from_text_to_loss.py"))["main"](128, 32)
    assert before - 0.2 < after < before


def notebook_cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "from_text_to_loss.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    return ["".join(cell["source"]) for cell in code]


def test_the_notebook(tmp_path, monkeypatch, capsys):
    """Its cells run one after the other; the loop and the trainer find the same."""
    install, sizes, *others = notebook_cells()
    assert install.endswith("\n%pip install -q ..")
    assert "PROMPTS, N = 256, 4" in sizes
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for source in (sizes.replace("PROMPTS, N = 256, 4", "PROMPTS, N = 64, 4"), *others):
        exec(compile(source, "the notebook", "exec"), found)
    assert found["after"] < found["before"]
    assert found["trainer_before"]["eval_loss"] == pytest.approx(found["before"], rel=1e-3)
    assert found["trainer_after"]["eval_loss"] < found["trainer_before"]["eval_loss"]
    assert "Loss on new prompts, in nats" in capsys.readouterr().out


def example_output(code: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / "trl_trainer.py")],
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
