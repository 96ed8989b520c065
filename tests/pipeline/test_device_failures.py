"""Where a device fails while settings are tried, the message blames the device and no setting."""

from __future__ import annotations

import pytest
import torch
import transformers
from worlds import changed_config

from pad_fast import cli
from pad_fast.pipeline import dry_build

LOST = "CUDA error: invalid device ordinal\nGPU device may be out of range\nCompile with DSA"
SAID = (
    "the device failed, which says nothing of the settings: {}; this process has 4 visible GPUs "
    "(CUDA_VISIBLE_DEVICES is '4,5,6,7'): see what else uses the device, and start again"
)
# The module and the name in it of what meets the device, and what the device says.
PLACES = {
    "arguments": (transformers.training_args, "PartialState", torch.AcceleratorError(LOST)),
    "trainer": (dry_build, "Trainer", torch.OutOfMemoryError("CUDA out of memory. Tried x\nsee")),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_setting_is_blamed_for_a_device(world, tmp_path, capsys, monkeypatch, place):
    module, name, error = PLACES[place]

    def fail(*_: object, **__: object) -> None:
        raise error

    given = {"divergence": "kl", "weight_decay": 0.1, "use_cpu": False}
    config = changed_config(world, tmp_path, **given)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        patch.setattr(module, name, fail)
        assert cli.main(["run", str(config)]) == cli.FAILED
    said = capsys.readouterr().err
    assert SAID.format(str(error).splitlines()[0].rstrip(".")) in said
    assert "weight_decay" not in said
    assert "the training's settings" not in said
