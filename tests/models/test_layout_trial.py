"""The choice of a layout: from configs, and by a trial that notices attention that is wrong."""

import logging
from dataclasses import replace

import pytest
import torch
import transformers
from groups import RAGGED, SMALL, VOCABULARY, make_groups, make_model
from torch import nn

from pad_fast.models import layout_trial, prefix_attention
from pad_fast.models.layout import RowLayout, Segment
from pad_fast.models.layout_trial import choose_layout


def test_what_cannot_share_says_why(caplog):
    groups = make_groups(*RAGGED)
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=1, state_size=4
        )
    )
    bloom = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=2)
    )
    sinks = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)
    )
    chunked, rotated, flash, linear = (make_model(dtype=torch.float32) for _ in range(4))
    chunked.config.attention_chunk_size = 4
    rotated.config.rope_parameters = {**rotated.config.rope_parameters, "mrope_section": [1, 1, 2]}
    flash.config._attn_implementation = "flash_attention_2"
    linear.config.layer_types = ["linear_attention", "full_attention"]
    cases = {
        mamba: "state from token to token",
        bloom: "cannot share|shares no prompt",
        sinks: "gpt_oss has attention sinks",
        chunked: "cut into chunks",
        rotated: "positions have several dimensions",
        flash: "its attention is flash_attention_2",
        linear: "layers of type linear_attention",
    }
    for model, message in cases.items():
        with pytest.raises(
            ValueError,
            match=f"cannot share a prompt among its responses.*{message}|{message}",
        ):
            choose_layout(model, groups, True)
        with caplog.at_level(logging.WARNING, "pad_fast"):
            caplog.clear()
            assert choose_layout(model, groups) == ("packed" if model is rotated else "padded")
            assert "shares no prompt among its responses" in caplog.text
            warnings = len(caplog.records)
            choose_layout(model, groups)
            assert len(caplog.records) == warnings  # each problem is logged once
    with pytest.raises(ValueError, match="share_prefix must be auto, true or false, got 'yes'"):
        choose_layout(bloom, groups, "yes")
    assert (
        choose_layout(bloom, make_groups((5, (3,)), (4, (2,)))) == "padded"
    )  # no prompt has two responses


def leaky(inputs):
    """Every token sees all that come before it in the row."""
    key, value = (x.repeat_interleave(inputs.group_size, 1) for x in (inputs.key, inputs.value))
    out = nn.functional.scaled_dot_product_attention(
        inputs.query, key, value, is_causal=True, scale=inputs.scale
    )
    return out.transpose(1, 2)


def without_gradient(inputs, own=prefix_attention.prefix_attention):
    """Values get no gradient."""
    return own(replace(inputs, value=inputs.value.detach()))


def blind(inputs, own=prefix_attention.prefix_attention):
    """Responses do not see their prompts."""
    layout = inputs.layout
    segments = [Segment(s.start, s.prompt, ()) for s in layout.segments]
    segments += [
        Segment(start, stop - start, ())
        for s in layout.segments
        for start, stop in s.spans()
        if stop > start
    ]
    return own(replace(inputs, layout=RowLayout(sorted(segments), layout.length)))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (leaky, "rewards differ by"),
        (blind, "rewards differ by"),
        (without_gradient, "gradients differ by"),
    ],
)
def test_the_trial_sees_broken_attention(broken, message, monkeypatch):
    model, groups = make_model(dtype=torch.float32), make_groups(*RAGGED)
    monkeypatch.setattr(prefix_attention, "prefix_attention", broken)
    with pytest.raises(ValueError, match=message):
        choose_layout(model, groups, True)
    if broken is without_gradient:
        assert (
            choose_layout(make_model(dtype=torch.float32), groups, True, gradients=False)
            == "shared"
        )


def test_the_trial_sees_a_small_leak_in_bfloat16(monkeypatch):
    """The comparison with each response alone would take it for rounding."""

    def whispering(inputs, own=prefix_attention.prefix_attention):
        out = own(inputs)
        return out + 2e-2 * out.mean(1, keepdim=True)

    model, groups = make_model(dtype=torch.bfloat16), make_groups(*RAGGED)
    monkeypatch.setattr(prefix_attention, "prefix_attention", whispering)
    with pytest.raises(ValueError, match=r"moves by .* when another one is changed|differ by"):
        choose_layout(model, groups, True)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_trial_knows_how_float32_products_are_rounded(precision):
    """Where a processor has them, products in bfloat16 move rewards by a hundredth."""
    groups, model = make_groups(*RAGGED), make_model(dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4 if weight.ndim == 2 else 1
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert choose_layout(model, groups) == "shared"
    finally:
        torch.set_float32_matmul_precision(before)
    assert choose_layout(model, groups) == "shared"


def test_a_window_that_does_not_reach_the_attention_is_seen():
    model, groups = make_model("gemma3"), make_groups(*RAGGED)
    model.config.sliding_window = 512  # longer than the rows of the trial
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert choose_layout(model, groups) == "packed"
    with pytest.raises(
        ValueError, match="sliding window of 512 tokens does not reach its attention"
    ):
        choose_layout(model, groups, True)


# What the device or the machine lacks is no property of the model.


def failing(error, times):
    """Attention that fails at its first calls, and the lengths of the rows that it was given."""
    lengths = []

    def attention(inputs, own=prefix_attention.prefix_attention):
        lengths.append(inputs.layout.length)
        if len(lengths) <= times:
            raise error
        return own(inputs)

    return attention, lengths


def test_memory_that_runs_out_is_tried_again_with_shorter_rows(monkeypatch):
    attention, lengths = failing(torch.OutOfMemoryError("CUDA out of memory."), times=1)
    monkeypatch.setattr(prefix_attention, "prefix_attention", attention)
    monkeypatch.setattr(layout_trial, "TRIED_TOKENS", ((256, 64), (2, 2), (1, 1)))
    model = make_model(dtype=torch.float32)
    assert choose_layout(model, make_groups(*RAGGED), True) == "shared"
    assert max(lengths[1:]) < lengths[0]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (MemoryError(), ValueError, "no memory on cpu to try the layout 'shared' .* smaller model"),
        (torch.AcceleratorError("CUDA error: lost"), RuntimeError, "cpu failed .* error: lost"),
    ],
)
def test_a_failure_of_the_device_is_not_remembered(error, raised, message, monkeypatch):
    model, groups = make_model(dtype=torch.float32), make_groups(*RAGGED)
    with monkeypatch.context() as patched:
        patched.setattr(prefix_attention, "prefix_attention", failing(error, times=100)[0])
        with pytest.raises(raised, match=message):
            choose_layout(model, groups)
    assert choose_layout(model, groups) == "shared"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "gcc or clang, and py"),
        (
            RuntimeError("out of resource: shared memory, Required: 2, Hardware limit: 1"),
            "than cpu",
        ),
    ],
)
def test_what_a_kernel_lacks_is_named(error, advice, monkeypatch, caplog):
    monkeypatch.setattr(prefix_attention, "prefix_attention", failing(error, times=100)[0])
    with caplog.at_level(logging.WARNING, "pad_fast"):
        assert choose_layout(make_model(dtype=torch.float32), make_groups(*RAGGED)) == "packed"
    assert advice in caplog.text
