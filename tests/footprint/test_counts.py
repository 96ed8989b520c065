"""The planner's counts of weights and flops against formulas."""

from __future__ import annotations

import pytest
import torch
from planning import N, setting
from transformers import AutoModelForCausalLM

from pad_fast.footprint import steps as footprint
from pad_fast.footprint.fakes import count_parameters
from pad_fast.footprint.steps import GroupShape, Reading, TrainingOptions


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters(tied):
    config, *_ = setting("llama-vocabulary", tie_word_embeddings=tied)
    assert count_parameters(config) == sum(
        weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters()
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops(checkpointing):
    """For each weight and token 2 flops forward, 4 backward, and 2 for activations computed again.

    Attention's products add to them.
    """
    config, prompt, response = setting("llama-long")
    tokens, rows, hidden = N * (prompt + response - 1), N * response, config.hidden_size
    weights = AutoModelForCausalLM.from_config(config).get_decoder().layers.parameters()
    layers = sum(weight.numel() for weight in weights if weight.ndim == 2)
    attention = (
        2
        * 2
        * N
        * config.num_attention_heads
        * (prompt + response - 1) ** 2
        * config.head_dim
        * config.num_hidden_layers
    )
    head = 2 * rows * config.vocab_size * hidden
    products, scores, again = 2 * tokens * layers, attention, int(checkpointing)
    # fused attention's backward computes the scores again: five products instead of two
    # three products of the head, since all rows keep their scores
    expected = products * (3 + again) + scores * (1 + 2.5 + again) + 3 * head
    # a layer's output is not computed again
    unneeded = 2 * tokens * config.intermediate_size * hidden * config.num_hidden_layers
    expected -= again * unneeded
    found = footprint.training_step(
        config, 1, GroupShape(prompt, response, N), TrainingOptions(checkpointing=checkpointing)
    ).flops
    small = 0.01 * expected  # such as rotary angles
    assert abs(found - expected) < small
    scored = footprint.scoring_batch(
        config, 1, GroupShape(prompt, response, N), torch.float32, 8192
    ).flops
    assert abs(scored - (products + scores + head)) < small


def test_flops_of_shared_attention():
    """Only pairs of tokens that see each other count in a shared row."""
    config, prompt, response = setting("llama-long")
    shared = footprint.scoring_batch(
        config,
        1,
        GroupShape(prompt, response, N),
        torch.float32,
        8192,
        Reading(shared=True, gpu=True),
    ).flops
    # 48 + 4 * 207 tokens in blocks of 128; the padding is a sequence by itself
    tokens, own = 896, response - 1
    weights = AutoModelForCausalLM.from_config(config).get_decoder().layers.parameters()
    layers = sum(weight.numel() for weight in weights if weight.ndim == 2)
    filling = tokens - prompt - N * own
    pairs = prompt**2 + N * own * (prompt + own) + filling**2
    attention = (
        2 * 2 * config.num_attention_heads * pairs * config.head_dim * config.num_hidden_layers
    )
    expected = (
        2 * tokens * layers + attention + 2 * N * response * config.vocab_size * config.hidden_size
    )
    assert abs(shared - expected) < 0.01 * expected
