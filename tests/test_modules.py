"""The losses as modules, from logits and from hidden states."""

from __future__ import annotations

import oracles
import pytest
import torch
from prompt_batch import D, N, P, T, states

from pad_fast import functional
from pad_fast.linear_loss import linear_preference_loss
from pad_fast.modules import LinearPADLoss, PADLoss


def plain_loss(
    hidden, weight, bias, labels, teacher, temperature=1.0, mask=None, **options
) -> torch.Tensor:
    """The same loss in plain PyTorch, the JSD by enumeration of all rankings."""
    logps = (
        ((hidden @ weight.T + bias) / temperature)
        .log_softmax(-1)
        .gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    )
    live = labels != -100
    means = (logps * live).sum(1) / live.sum(1).clamp(min=1)
    return oracles.preference_loss(means.view(P, N), teacher, "jsd", **options).mean()


def test_linear_loss_equals_plain_pytorch() -> None:
    hidden, weight, bias, labels, teacher = states()
    loss = LinearPADLoss(beta=3.0, temperature=1.7)(hidden, weight, labels, teacher, bias=bias)
    expected = plain_loss(hidden, weight, bias, labels, teacher, temperature=1.7, beta=3.0)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    leaves = (hidden, weight, bias)
    for got, wanted in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "vpd", "beta": 2.0},
        {"normalize": "sum", "divergence": "kl"},
        {"softcap": 3.0, "logit_scale": 0.5},
    ],
)
def test_modules_and_function_agree(options: dict) -> None:
    hidden, weight, bias, labels, teacher = states()
    loss, seen = linear_preference_loss(hidden, weight, labels, teacher, bias=bias, **options)
    from_logits = PADLoss(**options)(hidden @ weight.T + bias, labels, teacher)
    torch.testing.assert_close(from_logits, loss, rtol=1e-10, atol=1e-12)
    assert torch.equal(LinearPADLoss(**options)(hidden, weight, labels, teacher, bias=bias), loss)
    assert seen.shape == (P, N)
    assert not seen.requires_grad
    token_options = {
        k: v for k, v in options.items() if k in ("normalize", "softcap", "logit_scale")
    }
    expected = functional.linear_response_rewards(
        hidden, weight, labels, bias=bias, **token_options
    )
    assert torch.equal(seen.flatten(), expected.detach())


@pytest.mark.parametrize("shift", [False, True])
def test_packed_equals_padded(shift: bool) -> None:
    hidden, weight, _, labels, teacher = states()
    if shift:
        labels[:, 0] = -100  # the first token of each has nothing before it
        labels[3, 1] = 4  # a response must keep a token
    module = LinearPADLoss(shift=shift)
    padded = module(hidden, weight, labels, teacher)
    shuffled = torch.tensor(
        [4, 0, 5, 2, 1, 3]
    )  # sequences in any order, and rows that belong to none
    ids = shuffled.repeat_interleave(T)
    rows, packed_labels = hidden[shuffled].flatten(0, 1), labels[shuffled].flatten()
    strangers = torch.randn(4, D, dtype=torch.float64)
    packed = module(
        torch.cat([rows, strangers]),
        weight,
        torch.cat([packed_labels, torch.full((4,), 3)]),
        teacher,
        response_ids=torch.cat([ids, ids.new_full((4,), -1)]),
    )
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)


def test_shift_takes_hugging_face_labels() -> None:
    hidden, weight, bias, labels, teacher = states()
    logits = hidden @ weight.T + bias
    labels[3, 1] = 4
    aligned = PADLoss()(logits[:, :-1], labels[:, 1:], teacher)
    torch.testing.assert_close(
        PADLoss(shift=True)(logits, labels, teacher), aligned, rtol=1e-12, atol=0
    )


def test_empty_responses_are_masked() -> None:
    hidden, weight, _, labels, teacher = states()
    live = torch.ones(P, N, dtype=torch.bool)
    live[0, 1] = False
    masked = LinearPADLoss()(hidden, weight, labels, teacher, mask=live)
    labels[1] = -100
    teacher[0, 1] = float("nan")
    assert torch.equal(LinearPADLoss()(hidden, weight, labels, teacher), masked)
    by_hand = torch.arange(P * N).view(P, N) != N  # another mask, which has the empty response live
    both = LinearPADLoss()(hidden, weight, labels, teacher, mask=by_hand)
    assert both != masked
    assert torch.equal(both, LinearPADLoss()(hidden, weight, labels, teacher, mask=by_hand & live))


def test_a_call_can_replace_options() -> None:
    hidden, weight, _, labels, teacher = states()
    module = LinearPADLoss(method="sampled", num_samples=8)
    one, two = (module(hidden, weight, labels, teacher, seed=seed) for seed in (1, 2))
    assert one != two
    assert torch.equal(one, module(hidden, weight, labels, teacher, seed=1))
    assert "num_samples=8" in repr(module)


def test_modules_reject_bad_options_and_shapes() -> None:
    hidden, weight, _, labels, teacher = states()
    with pytest.raises(ValueError, match=r"loss must be one of ppd, vpd, .*, got 'ipo'"):
        PADLoss("ipo")
    with pytest.raises(
        ValueError, match="loss='vpd' has no option 'divergence'; it has beta, group_size"
    ):
        PADLoss("vpd", divergence="kl")
    with pytest.raises(
        ValueError, match=r"labels must have P \* N = 4 rows for teacher_rewards \(2, 2\)"
    ):
        LinearPADLoss()(hidden, weight, labels, teacher[:, :2])
    with pytest.raises(ValueError, match=r"teacher_rewards must be \(P, N\), got \(6,\)"):
        LinearPADLoss()(hidden, weight, labels, teacher.flatten())
    with pytest.raises(
        ValueError, match=r"mask must be bool of shape \(2, 3\), got torch.bool \(3,\)"
    ):
        LinearPADLoss()(hidden, weight, labels, teacher, mask=torch.ones(3, dtype=torch.bool))


def test_module_compiles_whole() -> None:
    hidden, weight, bias, labels, teacher = states()
    module = LinearPADLoss(group_size=2)
    loss = torch.compile(module, fullgraph=True, backend="aot_eager")(
        hidden, weight, labels, teacher, bias=bias
    )
    torch.testing.assert_close(
        loss, module(hidden, weight, labels, teacher, bias=bias), rtol=1e-12, atol=1e-12
    )
