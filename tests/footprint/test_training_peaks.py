"""The planner's peaks of training against measured ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planning import (
    CPU,
    SETTINGS,
    N,
    group_row,
    near,
    real_model,
    setting,
    step,
    two_steps,
)
from transformers import AutoModelForCausalLM

from benchmarks.memory import allocated_peak
from pad_fast import PADTrainer
from pad_fast.footprint import fakes
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.steps import GroupShape, Reading, TrainingOptions
from pad_fast.training.batch_layout import tokens_that_fit
from tests.card import REHEARSING, needs_a_card, sized


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "bf16"),
    [*((name, False) for name in SETTINGS), ("llama-long", True), ("gemma2-long", True)],
)
def test_peak_of_a_training_step(name, bf16, checkpointing):
    config, prompt, response = setting(name)
    model = real_model(config, checkpointing=checkpointing)
    measured, _ = allocated_peak(lambda: step(model, (prompt, response, N), bf16=bf16) or (), CPU)
    found = footprint.training_step(
        config,
        1,
        GroupShape(prompt, response, N),
        TrainingOptions(checkpointing=checkpointing, bf16=bf16, optimizer_bytes=0),
    )
    near(found.peak - found.start, measured)
    assert found.start == sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize(
    ("name", "checkpointing", "limit"),
    [
        ("llama-long", False, None),
        ("llama-long", True, 300),
        ("gemma2-long", False, 300),
        ("gemma2-long", True, None),
        ("llama-vocabulary", True, 64),
    ],
)
def test_peak_with_shared_prompts_and_slices(name, checkpointing, limit):
    config, prompt, response = setting(name)
    shape = GroupShape(2 * prompt, response, N)
    model = real_model(config, checkpointing=checkpointing)
    if limit:
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)  # left by an earlier slice
    measured, _ = allocated_peak(
        lambda: step(model, shape, layout="shared", limit=limit) or (), CPU
    )
    how = TrainingOptions(checkpointing=checkpointing, optimizer_bytes=0, max_tokens=limit)
    found = footprint.training_step(config, 1, shape, how, Reading(shared=True))
    near(found.peak - found.start, measured)


@pytest.mark.parametrize("budget", [0, 200 * 2**20, 2**30])
@pytest.mark.parametrize("name", ["llama-vocabulary", "gemma2-vocabulary"])
def test_peak_under_a_budget_of_the_head(name, budget):
    """No row, some and all rows keep their scores, and they are more than one tile."""
    config, prompt, response = setting(name)
    shape = GroupShape(prompt, 16 * response, N)
    model = real_model(config, memory_budget=budget)
    measured, _ = allocated_peak(lambda: step(model, shape) or (), CPU)
    how = TrainingOptions(checkpointing=False, optimizer_bytes=0, memory_budget=budget)
    found = footprint.training_step(config, 1, shape, how)
    near(found.peak - found.start, measured)


def test_what_sharing_and_slices_save():
    """Sharing saves flops and memory; slices save memory and cost flops."""
    config, prompt, response = setting("llama-long")
    shape, how = GroupShape(4 * prompt, response, N), TrainingOptions(optimizer_bytes=0)
    alone = footprint.training_step(config, 1, shape, how)
    shared = footprint.training_step(config, 1, shape, how, Reading(shared=True, gpu=True))
    sliced = footprint.training_step(
        config, 1, shape, replace(how, max_tokens=600), Reading(shared=True, gpu=True)
    )
    assert shared.flops < 0.7 * alone.flops
    assert shared.peak - shared.start < 0.8 * (alone.peak - alone.start)
    assert sliced.flops > 1.2 * shared.flops  # one more forward, and a prompt in each slice
    assert sliced.peak - sliced.start < 0.7 * (shared.peak - shared.start)


@pytest.mark.parametrize(
    ("name", "checkpointing", "micro", "share"),
    [
        ("llama-long", False, 1, "false"),
        ("llama-vocabulary", True, 2, "false"),
        ("gemma2-long", True, 2, "true"),
    ],
)
def test_peak_of_the_trainer(name, checkpointing, micro, share, tmp_path):
    """From the model's creation to the second step: weights, gradients and AdamW's moments."""
    config, prompt, response = setting(name, tie_word_embeddings=True)
    row = group_row(prompt, response)
    args = two_steps(tmp_path, checkpointing, micro, share_prefix=share)

    def train():
        PADTrainer(
            AutoModelForCausalLM.from_config(config, dtype=torch.float32), args, [row] * 4 * micro
        ).train()
        return ()

    measured, _ = allocated_peak(train, CPU)
    how = TrainingOptions(checkpointing=checkpointing, accumulating=micro > 1)
    near(
        footprint.training_step(
            config, 2, GroupShape(prompt, response, N), how, Reading(shared=share == "true")
        ).peak,
        measured,
    )


@needs_a_card
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_peak_on_a_gpu(name, checkpointing, share, card):
    """Against torch.cuda.max_memory_allocated, under bf16 autocast and with AdamW's moments."""
    larger = {
        "hidden_size": sized(1024, 64),
        "intermediate_size": sized(4096, 64),
        "num_hidden_layers": sized(6, 1),
        "head_dim": sized(256, 16),
        **({"vocab_size": 256} if REHEARSING else {}),
    }
    config, prompt, response = setting(name, **larger)
    lengths = (prompt, response) if REHEARSING else (4 * prompt, 4 * response)
    shape = GroupShape(*lengths, N)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = real_model(config, checkpointing=checkpointing).to(card)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for _ in range(2):
        step(model, shape, layout="shared" if share else "padded", bf16=True, device=card)
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated() - before
    how = TrainingOptions(checkpointing=checkpointing, bf16=True)
    found = footprint.training_step(config, 1, shape, how, Reading(shared=share, gpu=True))
    if not REHEARSING:  # whose measured memory is made up
        near(found.peak, measured, 0.2)


@pytest.mark.parametrize("name", ["llama-long", "gemma2-long"])
def test_slices_that_the_trainer_takes_by_itself_fit(name):
    """As many tokens as the trainer chooses for a GPU have a peak, by the planner, that fits."""
    config, *_ = setting(name, num_hidden_layers=4, hidden_size=256, intermediate_size=1024)
    memory = 2**30
    with fakes.fake():
        tokens = tokens_that_fit(
            fakes.fake_model(config, torch.float32), memory, width=2, checkpointing=True
        )
    how = TrainingOptions(bf16=True, checkpointing=True, accumulating=True)
    found = footprint.training_step(
        config, 1, GroupShape(512, (tokens - 512) // 8, 8), how, Reading(shared=True, gpu=True)
    )
    assert found.peak < memory
