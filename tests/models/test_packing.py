"""Prompts and responses in rows and slices, rows for flash-attn, and micro-batches."""

import itertools
import pickle

import pytest
import torch
from groups import RAGGED, alone, assert_same, gradients, loss_of, make_groups, make_model
from torch import nn

from pad_fast.losses import probabilistic_preference_loss
from pad_fast.models import layout_trial
from pad_fast.models.layout import BLOCK, LAYOUTS, Segment
from pad_fast.models.layout_trial import choose_layout
from pad_fast.models.packing import bucket, first_fit, pack, split
from pad_fast.models.rewards import packed_rewards
from pad_fast.training.micro_batches import micro_batched_backward


def test_the_shared_layout():
    packed = pack(make_groups((2, (3, 1)), (1, (2,))), "shared")
    (a, b), (c,) = (group.responses for group in make_groups((2, (3, 1)), (1, (2,))))
    assert packed.input_ids[0].tolist()[2:4] == a[:2]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 0, 1]
    # the prompt's last token predicts the first token of both responses
    assert packed.rows.tolist() == [1, 2, 3, 1, 4, 5]
    assert packed.labels.tolist() == a + b + c
    assert packed.response_ids.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.layout.segments == (Segment(0, 2, (2, 0)), Segment(4, 1, (1,)))
    packed.layout.cache["a mask"] = torch.zeros(1)
    again = pickle.loads(pickle.dumps(packed))  # as from a data loader's worker
    assert (again.layout.segments, again.layout.length, again.layout.cache) == (
        packed.layout.segments,
        6,
        {},
    )
    assert pack(make_groups((2, (3, 1))), "shared", bucketed=True).input_ids.shape == (1, 2 * BLOCK)
    with pytest.raises(
        ValueError, match="layout must be one of shared, packed, padded, got 'other'"
    ):
        pack([], "other")


def test_packed_rows_have_next_to_no_padding():
    groups = make_groups((3, (10, 2, 3, 4)), (5, (1, 6)))
    packed = pack(groups, "packed")
    assert packed.input_ids.shape == (4, 12)
    assert pack(groups, "packed", one_row=True).input_ids.shape == (1, 12 + 4 + 5 + 6 + 5 + 10)
    # packing would save nothing, and the rows are padded
    assert pack(make_groups((3, (4, 4))), "packed").position_ids is None
    assert first_fit([3, 9, 4, 6, 1]) == [[1], [3, 0], [2, 4]]


def test_slices_hold_their_budget_and_every_response_once():
    groups = make_groups(*RAGGED)
    for layout in LAYOUTS:
        for budget in (30, 60, None):
            slices = split(groups, budget, layout)
            assert [
                number for part in slices for group in part for number in group.numbers
            ] == list(range(23))
            for part in slices:
                size = pack(part, layout).input_ids.numel()
                assert (
                    budget is None
                    or size <= budget
                    or sum(len(group.numbers) for group in part) == 1
                )
    assert len(split(groups, 30, "shared")) < len(split(groups, 30, "padded"))


def test_buckets_are_few():
    lengths = {bucket(length) for length in range(1, 20000)}
    assert all(length % BLOCK == 0 for length in lengths)
    assert len(lengths) < 60
    assert all(
        length <= bucket(length) <= max(length * 9 / 8 + 1, BLOCK * max(2, -(-length // BLOCK)))
        for length in range(1, 20000, 7)
    )


def test_packed_rows_tell_flash_attention_where_sequences_end(monkeypatch):
    """A stand-in of flash-attn's name takes its arguments and attends to each sequence alone."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def flash(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling,
        cu_seq_lens_q=None,
        max_length_q=None,
        **options,
    ):
        if cu_seq_lens_q is None:
            ends, longest = [0, query.shape[2]], query.shape[2]
        else:
            ends, longest = cu_seq_lens_q.tolist(), max_length_q
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        parts = [[x[:, :, a:b] for x in (query, key, value)] for a, b in itertools.pairwise(ends)]
        assert longest == max(part[0].shape[2] for part in parts)
        out = [
            nn.functional.scaled_dot_product_attention(*part, is_causal=True, scale=scaling)
            for part in parts
        ]
        return torch.cat(out, 2).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_of_a_test", flash)
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_of_a_test", lambda **options: None
    )
    model, groups = make_model(), make_groups(*RAGGED)
    wanted = alone(model, groups)
    model.config._attn_implementation = "flash_of_a_test"
    assert layout_trial.takes_one_row(model)
    assert choose_layout(model, groups) == "packed"
    packed = pack(groups, "packed", one_row=True)
    assert packed.input_ids.shape == (
        1,
        sum(len(x) * len(ys) + sum(len(y) - 1 for y in ys) for x, ys, _ in groups),
    )
    torch.testing.assert_close(packed_rewards(model, packed, 23), wanted, rtol=1e-6, atol=1e-6)


def test_micro_batches_replay_dropout_and_ask_for_slices():
    layer, inputs = (
        nn.Linear(4, 1).double(),
        torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    drop = nn.Dropout(0.5)

    def rewards_of(rows):
        return torch.zeros(6, dtype=torch.float64).index_add(
            0, torch.tensor(rows), drop(layer(inputs[rows]))[:, 0]
        )

    torch.manual_seed(3)
    loss, rewards = micro_batched_backward(rewards_of, [[0, 1], [2, 3, 4], [5]], loss_of)
    after = torch.rand(())
    found = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    torch.manual_seed(3)
    whole = rewards_of([0, 1]) + rewards_of([2, 3, 4]) + rewards_of([5])
    assert torch.equal(torch.rand(()), after)
    torch.testing.assert_close(rewards, whole.detach())
    value = loss_of(whole)
    value.backward()
    assert loss.item() == pytest.approx(value.item())
    for mine, parameter in zip(found, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    with pytest.raises(ValueError, match="slices must not be empty, got none"):
        micro_batched_backward(rewards_of, [], loss_of)


def test_a_bare_loop_in_slices():
    model, groups = make_model(), make_groups((6, tuple([9] * 12)))
    teacher = torch.linspace(-1, 0, 12, dtype=torch.float64)[None]

    def loss(rewards):
        return probabilistic_preference_loss(
            rewards[None], teacher, method="sampled", num_samples=64, seed=1
        )

    wanted = loss(packed_rewards(model, pack(groups, "shared"), 12))
    wanted.backward()
    before = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    slices = [pack(part, "shared") for part in split(groups, 32, "shared")]
    assert len(slices) == 4
    found, _ = micro_batched_backward(lambda part: packed_rewards(model, part, 12), slices, loss)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert_same(gradients(model), before)
