"""A prompt shared by its responses, packed rows and slices, against each response alone in float64."""

import logging
from dataclasses import replace

import pytest
import torch
import transformers
from groups import (
    CONFIGS,
    RAGGED,
    SMALL,
    VOCABULARY,
    alone,
    assert_same,
    checkpoint_activations,
    gradients,
    loss_of,
    make_groups,
    make_model,
)
from torch import nn

from pad_fast.models import layout_trial, prefix_attention, tiled_attention
from pad_fast.models.layout import LAYOUTS, RowLayout, Segment
from pad_fast.models.layout_trial import choose_layout
from pad_fast.models.packing import pack, split
from pad_fast.models.rewards import attach_rewards_forward, packed_rewards
from pad_fast.models.scoring import score_responses
from pad_fast.training.micro_batches import micro_batched_backward


@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_has_the_values_and_gradients_of_each_response_alone(name):
    model, groups = make_model(name), make_groups(*RAGGED)
    count = sum(len(group.numbers) for group in groups)
    wanted = alone(model, groups)
    loss_of(wanted).backward()
    wanted_gradients = {name: gradient.clone() for name, gradient in gradients(model).items()}
    assert choose_layout(model, groups) == "shared"
    assert choose_layout(model, groups, share_prefix=False) == "packed"
    for layout in LAYOUTS:
        for budget in (None, 60):
            model.zero_grad()
            slices = [pack(part, layout) for part in split(groups, budget, layout)]
            assert (len(slices) == 1) == (budget is None)
            if budget is None:
                rewards = packed_rewards(model, slices[0], count)
                loss_of(rewards).backward()
            else:
                loss, rewards = micro_batched_backward(
                    lambda part: packed_rewards(model, part, count), slices, loss_of
                )
                assert loss.item() == pytest.approx(loss_of(wanted).item(), abs=1e-6)
            torch.testing.assert_close(rewards, wanted, rtol=1e-6, atol=1e-6)
            assert_same(gradients(model), wanted_gradients)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_long_rows_go_in_several_tiles(name, monkeypatch):
    """Tiles smaller than prompts and responses, and prompts that are a causal tile by themselves."""
    for constant, value in {
        "MOST_QUERIES": 8,
        "LEAST_CAUSAL": 5,
        "SMALL_TILE": 16,
        "MOST_SCORES": 300,
    }.items():
        monkeypatch.setattr(tiled_attention, constant, value)
    model, groups = make_model(name), make_groups(*RAGGED, (40, (33, 2, 9)), seed=3)
    packed = pack(groups, "shared")
    rewards = packed_rewards(model, packed, len(packed.response_ids.unique()))
    wanted = alone(model, groups)
    torch.testing.assert_close(rewards, wanted, rtol=1e-6, atol=1e-6)
    assert max(len(batches) for batches, _ in packed.layout.cache.values()) > 5
    found, expected = (
        torch.autograd.grad(loss_of(x), tuple(model.parameters())) for x in (rewards, wanted)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_no_response_sees_another(name, layout):
    model, groups = make_model(name, torch.float32), make_groups(*RAGGED)
    count = sum(len(group.numbers) for group in groups)
    before = packed_rewards(model, pack(groups, layout), count).detach()
    for number in (0, 2, 4, 12, count - 1):
        changed = [
            group._replace(
                responses=[
                    [(t + 7) % VOCABULARY for t in y] if i == number else y
                    for y, i in zip(*group[1:], strict=True)
                ]
            )
            for group in groups
        ]
        moved = packed_rewards(model, pack(changed, layout), count) != before
        assert moved.nonzero().flatten().tolist() == [number]  # to the bit


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_checkpointing_and_bfloat16_autocast(name, checkpointing):
    model, groups = make_model(name, torch.float32).train(), make_groups(*RAGGED)
    attach_rewards_forward(model)
    count = sum(len(group.numbers) for group in groups)
    found = {}
    for layout in ("shared", "padded"):
        model.zero_grad()
        checkpoint_activations(model, checkpointing)
        with torch.autocast("cpu", torch.bfloat16):
            rewards = model(**pack(groups, layout)._asdict(), num_responses=count)
        loss_of(rewards).backward()
        found[layout] = (
            rewards.detach(),
            torch.cat([gradient.flatten() for gradient in gradients(model).values()]),
        )
    (mine, my_gradient), (theirs, their_gradient) = found["shared"], found["padded"]
    torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)
    assert (my_gradient - their_gradient).norm() < 0.1 * their_gradient.norm()


def test_checkpointing_recomputes_with_the_same_layout():
    model, groups = make_model().train(), make_groups(*RAGGED)
    attach_rewards_forward(model)
    found = []
    for on in (False, True):
        model.zero_grad()
        checkpoint_activations(model, on)
        loss_of(model(**pack(groups, "shared")._asdict(), num_responses=23)).backward()
        found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    assert_same(found[1], found[0], rtol=0, atol=0)


def test_other_calls_and_checkpoints_do_not_see_it(tmp_path):
    model, groups = make_model("gemma2", torch.float32), make_groups(*RAGGED)
    ids = torch.arange(20)[None]
    expected = model(input_ids=ids).logits
    packed_rewards(model, pack(groups, "shared"), 23)
    assert model.config._attn_implementation == "pad_fast_eager"
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 23)
    model.save_pretrained(tmp_path)
    assert "pad_fast" not in (tmp_path / "config.json").read_text()
    fresh = make_model("gemma2", torch.float32)
    score_responses(
        fresh, [group.prompt for group in groups], [group.responses for group in groups]
    )
    assert fresh.config._attn_implementation == "eager"


def test_scores_are_the_same_shared_or_not():
    model, groups = make_model("mistral", torch.float32), make_groups(*RAGGED)
    prompts, responses = [group.prompt for group in groups], [group.responses for group in groups]
    wanted = alone(model, groups).tolist()
    read = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    tokens = {}
    for share in (True, False):
        for budget in (1, 30, 8192):
            score_responses(model, prompts, responses, share_prefix=share)  # its trial
            read.clear()
            found = score_responses(
                model, prompts, responses, share_prefix=share, max_tokens_per_batch=budget
            )
            assert [value for group in found for value in group] == pytest.approx(wanted, abs=1e-5)
            tokens[share, budget] = sum(read)
    handle.remove()
    assert tokens[True, 8192] == sum(len(x) + sum(len(y) - 1 for y in ys) for x, ys, _ in groups)
    assert tokens[True, 8192] < tokens[False, 8192] / 2
    assert tokens[True, 1] == tokens[False, 1]  # a response a batch


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_logits_of_response_rows_alone(layout, monkeypatch):
    """Where the head cannot be read, the model's own sees no row but the responses'."""
    monkeypatch.setattr(layout_trial, "head_problem", lambda model: None)
    model, groups = (
        make_model("gemma2"),
        make_groups(*RAGGED),
    )  # which caps its logits behind the head
    wanted = alone(model, groups)
    from pad_fast.models import rewards

    monkeypatch.setattr(rewards, "head_problem", lambda model: "of this test")
    rows = []
    handle = model.lm_head.register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[:-1].numel())
    )
    packed = pack(groups, layout)
    found = packed_rewards(model, packed, 23)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert rows == [len(packed.rows)]
    mine, theirs = (
        torch.autograd.grad(loss_of(x), tuple(model.parameters())) for x in (found, wanted)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
    handle.remove()
    assert not model.lm_head._forward_pre_hooks


# the choice of a layout


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
            match=f"share_prefix=True, but .* cannot share a prompt among its responses.*{message}|{message}",
        ):
            choose_layout(model, groups, True)
        with caplog.at_level(logging.WARNING, "pad_fast"):
            caplog.clear()
            assert choose_layout(model, groups) == (
                "packed" if model in (chunked, rotated) else "padded"
            )
            assert "shares no prompt among its responses" in caplog.text
            told = len(caplog.records)
            choose_layout(model, groups)
            assert len(caplog.records) == told  # once
    with pytest.raises(ValueError, match="share_prefix must be auto, true or false, got 'yes'"):
        choose_layout(bloom, groups, "yes")
    assert choose_layout(bloom, make_groups((5, (3,)), (4, (2,)))) == "padded"  # nothing to share


def leaky(inputs):
    """Every token sees all that come before it in the row."""
    key, value = (x.repeat_interleave(inputs.group_size, 1) for x in (inputs.key, inputs.value))
    out = nn.functional.scaled_dot_product_attention(
        inputs.query, key, value, is_causal=True, scale=inputs.scale
    )
    return out.transpose(1, 2)


def without_gradient(inputs, own=prefix_attention.prefix_attention):
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
    """Rounding would hide it from the comparison with each response alone."""

    def whispering(inputs, own=prefix_attention.prefix_attention):
        out = own(inputs)
        return out + 2e-2 * out.mean(1, keepdim=True)

    model, groups = make_model(dtype=torch.bfloat16), make_groups(*RAGGED)
    monkeypatch.setattr(prefix_attention, "prefix_attention", whispering)
    with pytest.raises(ValueError, match=r"moves by .* when another one is changed|differ by"):
        choose_layout(model, groups, True)


def test_a_window_that_does_not_reach_the_attention_is_seen():
    model, groups = make_model("gemma3"), make_groups(*RAGGED)
    model.config.sliding_window = 512  # longer than what is tried
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert choose_layout(model, groups) == "packed"
    with pytest.raises(
        ValueError, match="sliding window of 512 tokens does not reach its attention"
    ):
        choose_layout(model, groups, True)
