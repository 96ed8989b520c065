"""Which implementation runs, and whether this machine can start it."""

import subprocess

import pytest
import torch
from pad_fast.kernels.common import trial

from pad_fast import dispatch

CPU = torch.device("cpu")
HEADERS = subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c", "-O3", "-shared"])


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("Failed to find C compiler. Please specify"), "install gcc or clang, and py"),
        (HEADERS, "install gcc or clang, and python3-dev; or set impl to torch"),
        (RuntimeError("no driver"), "no driver. without Triton, set impl to torch"),
    ],
)
def test_what_cannot_be_launched_is_said_before(error, advice, monkeypatch):
    def launch(device):
        raise error

    monkeypatch.setattr(trial, "launch", launch)
    dispatch.check_launches("auto", CPU)  # a CPU takes PyTorch, which launches nothing
    monkeypatch.setattr(dispatch, "runs_kernels", lambda tensor: True)
    dispatch.check_launches("torch", CPU)
    with pytest.raises(ValueError, match=r"^impl: Triton cannot launch kernels on cpu: ") as caught:
        dispatch.check_launches("auto", CPU)
    assert advice in str(caught.value)
