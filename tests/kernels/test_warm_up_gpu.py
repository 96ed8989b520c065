"""What ``warm_up`` compiles on a card is all that a first step asks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.card import DEVICE, NEEDS_A_CARD

pytestmark = [*NEEDS_A_CARD]
ROOT = Path(__file__).resolve().parents[2]
# Compiled kernels are counted by their files in the cache, which is empty at first.
STEP = """
import sys
from pathlib import Path
import torch
from pad_fast import LinearPADLoss, PADLoss, warm_up

name, device, cache = sys.argv[1], sys.argv[2], Path(sys.argv[3])

def compiled():
    return len([path for path in cache.rglob("*") if path.suffix in (".cubin", ".hsaco")])

loss = {"logits": PADLoss, "linear": LinearPADLoss}[name]("ppd", divergence="kl")
ready = warm_up(loss, responses=4, vocabulary=32000, device=device, background=False)
before = compiled()
assert not ready.state.startswith("failed"), ready.state
assert before or device == "cpu"
half = {"dtype": torch.bfloat16, "device": device, "requires_grad": True}
labels = torch.randint(32000, (8, 17), device=device)
labels[0, :5] = -100
teacher = torch.randn(2, 4, device=device)
if name == "logits":
    found = loss(torch.randn(8, 17, 32000, **half), labels, teacher)
else:
    found = loss(torch.randn(8, 17, 256, **half), torch.randn(32000, 256, **half), labels, teacher)
found.backward()
print(before, compiled())
"""


@pytest.mark.parametrize("name", ["logits", "linear"])
def test_a_step_after_warm_up_compiles_nothing(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STEP, name, DEVICE, str(tmp_path)],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = done.stdout.split()[-2:]
    assert before == after
