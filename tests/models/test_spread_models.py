"""Models over several devices, whose output head is not where token ids go.

The tensors have no values, and the second device need not be there.
"""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from groups import CONFIGS, RAGGED, make_groups
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pad_fast.footprint.fakes import fake, fake_model
from pad_fast.models import output_head
from pad_fast.models.packing import pack
from pad_fast.models.rewards import packed_logprobs, packed_rewards

ELSEWHERE = "cuda:1"


def spread_model(name: str = "llama", *, brings_back: bool = True):
    """A model whose head is on another device, with the hooks of device_map.

    They bring the logits back to the input's device, which one that is spread by hand may not do.
    """
    model = fake_model(copy.deepcopy(CONFIGS[name]), torch.float32).eval()
    weight = torch.empty_like(model.lm_head.weight, device=ELSEWHERE)
    model.lm_head.weight = torch.nn.Parameter(weight)
    add_hook_to_module(model.lm_head, AlignDevicesHook(ELSEWHERE))
    if brings_back:
        add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True))
    return model


@pytest.mark.parametrize("problem", [None, "its head is not trusted"])
def test_rewards_come_back_to_the_rows(problem):
    groups = make_groups(*RAGGED)
    count = sum(len(group.numbers) for group in groups)
    with fake(), torch.no_grad():
        model = spread_model(brings_back=problem is None)
        output_head._disagreements[model] = problem
        for layout in ("padded", "packed", "shared"):
            packed = pack(groups, layout)
            rewards = packed_rewards(model, packed, count)
            assert (rewards.device.type, len(rewards)) == ("cpu", count)
            assert packed_logprobs(model, packed).device.type == "cpu"


def test_the_head_is_tried_where_it_is():
    with FakeTensorMode(shape_env=ShapeEnv()):
        own, ours = output_head._both_logits(spread_model("gemma2"))
    assert own.device == ours.device == torch.device(ELSEWHERE)


def test_layers_elsewhere_get_no_mask_of_the_square_of_the_row():
    """Hooks copy a layer's arguments to its device, where a view becomes all that it shows."""
    groups, seen = make_groups(*RAGGED), []
    with fake(), torch.no_grad():
        model = fake_model(copy.deepcopy(CONFIGS["llama"]), torch.float32).eval()
        model.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        packed = pack(groups, "shared")
        packed_rewards(model, packed, sum(len(group.numbers) for group in groups))
    assert len(seen) == 1
    assert seen[0].nbytes == 1
