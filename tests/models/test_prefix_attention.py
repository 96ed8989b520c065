"""A prompt shared by its responses, packed rows and slices, against each response alone."""

import pytest
import torch
from groups import (
    CONFIGS,
    RAGGED,
    VOCABULARY,
    alone,
    assert_same,
    gradients,
    loss_of,
    make_groups,
    make_model,
)

from pad_fast.models import layout_trial, tiled_attention
from pad_fast.models.auto import recompute_activations
from pad_fast.models.layout import LAYOUTS
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
    """Tiles are smaller than prompts and responses, and a prompt may be one causal tile."""
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
        assert moved.nonzero().flatten().tolist() == [number]  # all others have the same bits


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_checkpointing_and_bfloat16_autocast(name, checkpointing):
    model, groups = make_model(name, torch.float32).train(), make_groups(*RAGGED)
    attach_rewards_forward(model)
    count = sum(len(group.numbers) for group in groups)
    found = {}
    for layout in ("shared", "padded"):
        model.zero_grad()
        recompute_activations(model, checkpointing)
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
        recompute_activations(model, on)
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
            score_responses(model, prompts, responses, share_prefix=share)  # tries the layout
            read.clear()
            found = score_responses(
                model, prompts, responses, share_prefix=share, max_tokens_per_batch=budget
            )
            assert [value for group in found for value in group] == pytest.approx(wanted, abs=1e-5)
            tokens[share, budget] = sum(read)
    handle.remove()
    assert tokens[True, 8192] == sum(len(x) + sum(len(y) - 1 for y in ys) for x, ys, _ in groups)
    assert tokens[True, 8192] < tokens[False, 8192] / 2
    assert tokens[True, 1] == tokens[False, 1]  # each response is a batch


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_logits_of_response_rows_alone(layout, monkeypatch):
    """Where the head cannot be read, the model's own head sees only the rows of responses."""
    monkeypatch.setattr(layout_trial, "head_problem", lambda model: None)
    model, groups = make_model("gemma2"), make_groups(*RAGGED)  # has a softcap after the head
    wanted = alone(model, groups)
    from pad_fast.models import rewards

    monkeypatch.setattr(rewards, "head_problem", lambda model: "a problem")
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
