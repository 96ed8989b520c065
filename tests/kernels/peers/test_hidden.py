"""Log-probabilities from hidden states, at the sizes with which CCE, TRL, Liger and QuACK test."""

from __future__ import annotations

import itertools

import pytest
import torch

from pad_fast import functional, reference
from tests.kernels.peers.cases import BF16, DEVICE, F16, F32, Case, assert_close, check_all
from tests.kernels.peers.cases import tests_of as of_all

TRLS = {"vocabulary": 128, "width": 32, "rows": 64}
LIGERS = (
    (8, 512, 512),
    (8 * 2048, 32000, 4096),
    (4 * 423, 32000, 8192),
    (6 * 47, 123, 31),
    (16 * 128, 4096, 1024),
)
TABLES = {
    "CCE": [
        Case(
            n,
            v,
            d,
            dtype,
            1e-6,
            tol,
            scale=d**-0.5,
            bias=bias,
            ignored=ignored,
            mean=True,
            options={"softcap": softcap},
        )
        for (n, v, d), (dtype, tol), bias, ignored, softcap in itertools.product(
            ((256, 512, 128), (252, 507, 128), (252, 507, 123)),
            ((F32, 1e-5), (F16, 1e-3), (BF16, 1e-2)),
            (False, True),
            (0.0, 0.2),
            (None, 20.0),
        )
    ],
    "TRL": [
        Case(**TRLS, dtype=dtype, rtol=tol, atol=tol, options=options)
        for dtype, tol in ((F32, 1e-5), (BF16, 1e-2))
        for options in (
            {},
            {"temperature": 0.7},
            {"temperature": 0.7, "logit_scale": 0.5},
            {"temperature": 0.7, "softcap": 30.0},
            {"temperature": 0.7, "logit_scale": 0.5, "softcap": 30.0},
        )
    ],
    "Liger": [
        Case(m, v, d, dtype, rtol, atol, weight=0.3, bias=bias, mean=True)
        for m, v, d in LIGERS
        for dtype, rtol, atol in ((BF16, 5e-2, 5e-3), (F32, 5e-4, 1e-5))
        for bias in (True, False)
    ],
    "QuACK": [
        Case(m, v, d, BF16, 1e-3, 1e-3, scale=0.1, weight=d**-0.5, mean=True)
        for m in (8, 16, 24)
        for d in (768, 1024)
        for v in (32000, 50264, 128256)
    ],
}


@of_all(TABLES)
def test_values_and_gradients(cases, impl):
    check_all(cases, impl)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_trls_bfloat16_hidden_states_below_a_float32_head(impl):
    leaves, labels, upstream = Case(**TRLS, dtype=BF16, rtol=0, atol=0).inputs()
    leaves = [leaves[0], leaves[1].float()]
    found = []
    for module, some, options in (
        (functional, leaves, {"impl": impl}),
        (reference, [leaf.double() for leaf in leaves], {}),
    ):
        some = [leaf.detach().requires_grad_() for leaf in some]
        logps = module.linear_token_logprobs(*some, labels, **options)
        found.append([logps, *torch.autograd.grad(logps, some, upstream.to(logps.dtype))])
    assert [each.dtype for each in found[0]] == [F32, BF16, F32]
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-2, 1e-2)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("needed", [(0, 2), (1,), (2,)], ids=str)
def test_cces_parts_of_the_gradient(impl, needed):
    """Only those leaves get a gradient that ask for one."""
    leaves, labels, upstream = Case(24, 512, 128, BF16, 0, 0, scale=128**-0.5, bias=True).inputs()
    leaves = [leaf.requires_grad_(i in needed) for i, leaf in enumerate(leaves)]
    hidden, weight, bias = leaves
    logps = functional.linear_token_logprobs(hidden, weight, labels, bias=bias, impl=impl)
    logps.backward(upstream)
    assert [leaf.grad is not None for leaf in leaves] == [i in needed for i in range(3)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = reference.linear_token_logprobs(exact[0], exact[1], labels, bias=exact[2])
    wanted.backward(upstream.double())
    for i in needed:
        assert_close(leaves[i].grad, exact[i].grad, 1e-2, 1e-2)


@pytest.mark.parametrize(("beta", "gamma", "ignored"), [(0.1, 0.5, -100), (0.2, 0.85, 42)])
@pytest.mark.parametrize(("dtype", "rtol"), [(BF16, 5e-2), (F32, 5e-4)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_ligers_pairs(beta, gamma, ignored, dtype, rtol, has_bias):
    """SimPO of three pairs of 47 tokens, by its formula in float64."""
    from pad_fast import LinearPADLoss

    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 47, 31, generator=g).to(dtype)
    weight, bias = (torch.randn(*n, generator=g).to(dtype) for n in ((123, 31), (123,)))
    labels = torch.randint(123, (6, 47), generator=g)
    labels.view(-1)[torch.randperm(6 * 47, generator=g)[:90]] = ignored
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    leaves = [leaf.to(DEVICE).requires_grad_() for leaf in (hidden, weight, bias)]
    labels, teacher = labels.to(DEVICE), teacher.to(DEVICE)
    loss_of = LinearPADLoss("simpo", beta=beta, gamma=gamma, ignore_index=ignored)
    loss = loss_of(*leaves[:2], labels, teacher, bias=leaves[2] if has_bias else None)
    needed = leaves if has_bias else leaves[:2]
    grads = torch.autograd.grad(loss, needed)

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = exact[0] @ exact[1].T + (exact[2] if has_bias else 0)
    live = labels != ignored
    logps = logits.log_softmax(-1).gather(-1, labels.masked_fill(~live, 0)[..., None])[..., 0]
    rewards = ((logps * live).sum(1) / live.sum(1)).view(3, 2)
    better = rewards.gather(1, teacher.argmax(1, True)) - rewards.gather(1, teacher.argmin(1, True))
    wanted = -torch.nn.functional.logsigmoid(beta * better - gamma).mean()
    assert_close(loss, wanted, rtol, 1e-5)
    for got, want in zip(grads, torch.autograd.grad(wanted, exact[: len(needed)]), strict=True):
        assert_close(got, want, rtol, 5e-3 if dtype == BF16 else 1e-5)
