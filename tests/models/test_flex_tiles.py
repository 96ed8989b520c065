"""Tiles of FlexAttention that fit into the shared memory of the GPUs that we have not."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from pad_fast.models import flex_attention as module
from pad_fast.models.attention_inputs import AttentionInputs
from pad_fast.models.flex_tiles import (
    BACKWARD,
    BACKWARDS,
    FORWARD,
    FORWARDS,
    SM_80,
    SM_86,
    SM_90,
    tile_options,
)
from pad_fast.models.layout import BLOCK, RowLayout, Segment
from pad_fast.models.tiled_attention import tiled_attention

ROOT = Path(__file__).resolve().parents[2]
SM_75 = 65_536
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("memory", [None, SM_80, SM_90])
@pytest.mark.parametrize("head", [16, 64, 80, 128, 192, 256])
def test_large_gpus_keep_the_tiles_of_pytorch(head, memory):
    assert tile_options(head, BF16, memory) == ()


@pytest.mark.parametrize(
    ("head", "dtype", "memory", "options"),
    [
        (64, BF16, SM_86, {}),
        (64, FP32, SM_86, {}),
        (128, FP32, SM_90, {}),
        (96, BF16, SM_86, {"fwd_BLOCK_M": "128", "fwd_num_stages": "2"}),
        (256, torch.float16, SM_86, {"fwd_num_stages": "2", "bwd_BLOCK_N1": "32"}),
        (512, BF16, SM_86, {"fwd_BLOCK_N": "16"}),
        (512, BF16, SM_80, {"fwd_BLOCK_N": "32"}),
        (512, BF16, SM_90, {"fwd_BLOCK_N": "32"}),
        (256, FP32, SM_80, {"fwd_BLOCK_M": "64"}),
        (512, FP32, SM_86, {"fwd_BLOCK_M": "16"}),  # the least there is
        (128, torch.float16, SM_75, {}),  # whose own tile takes all of it, and ours would more
    ],
)
def test_other_gpus_take_what_fits(head, dtype, memory, options):
    found = dict(tile_options(head, dtype, memory))
    assert {name: found[name] for name in options} == options
    if not options:
        assert not found
    assert not any(name.startswith("bwd") for name in found) or "bwd_BLOCK_N1" in options


CHOICES = [
    pytest.param(names, size, choice, id=f"{names[0][:3]} {size[0]} {choice.tile}")
    for names, table in ((FORWARD, FORWARDS), (BACKWARD, BACKWARDS))
    for size, choices in table.items()
    for choice in choices
    if choice.tile is not None
]


@pytest.mark.parametrize(("names", "size", "choice"), CHOICES)
def test_a_tile_is_one_that_the_kernels_take(names, size, choice):
    tile = dict(zip(names, choice.tile, strict=True))
    blocks = {name[4:]: number for name, number in tile.items() if "BLOCK" in name}
    assert all(BLOCK % number == 0 and number >= 16 for number in blocks.values())
    head, width = size
    if names is BACKWARD:
        assert blocks["BLOCK_N1"] % blocks["BLOCK_M1"] == 0
        assert blocks["BLOCK_M2"] % blocks["BLOCK_N2"] == 0
        tensors = 4 * max(blocks.values())  # keys, values, queries and upstream gradients
    else:
        # A stage less than there are holds keys and values, and then come queries and scores.
        tensors = 2 * (tile["fwd_num_stages"] - 1) * blocks["BLOCK_N"]
    least = tensors * head * width
    scores = max(blocks.values()) * (head + min(blocks.values())) * width
    assert least <= choice.least <= least + 1.2 * scores + 8192


def test_the_options_reach_the_kernels_as_numbers(monkeypatch):
    """A number that varies would be a variable of the graph, and no tile."""
    seen = []

    def backend(graph, inputs):
        arguments = [x for node in graph.graph.nodes for x in node.args if isinstance(x, dict)]
        seen.extend(dict(options) for options in arguments if "BACKEND" in options)
        return graph

    monkeypatch.setattr(module, "shared_memory", lambda device: SM_86)
    monkeypatch.setattr(module, "compiles_attention", lambda device: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    module._implementation.cache_clear()
    try:
        for head in (256, 64, 256):
            layout = RowLayout([Segment(0, 100, (20, 8))], 128)
            inputs = AttentionInputs(*torch.randn(3, 1, 2, 128, head).bfloat16(), layout, 0.1)
            wanted = tiled_attention(inputs)
            torch.testing.assert_close(module.flex_attention(inputs), wanted, rtol=0.02, atol=0.02)
    finally:
        module._implementation.cache_clear()
    tiles = [{k: v for k, v in options.items() if k in FORWARD + BACKWARD} for options in seen]
    forward, backward = (32, 64, 2, 4), (32, 32, 32, 32, 2, 4)
    assert tiles[0] == dict(zip(FORWARD + BACKWARD, forward + backward, strict=True))
    assert tiles[1:] == [{}]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_the_compiled_kernels_fit(kind):
    """The templates of this PyTorch, compiled for a GPU with little shared memory."""
    command = [sys.executable, str(ROOT / "tools" / "attention_memory.py"), "--types", kind]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--targets", "sm_89", "--heads", "64", "128", "256"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    asked = {line.split(" (")[0].rsplit(" ", 1)[0]: line for line in lines}  # the last is taken
    assert len(asked) == 6
    assert all(line.endswith("fits") for line in asked.values()), lines
