"""Log-probabilities from logits, at the sizes with which QuACK, TRL and Liger test theirs."""

from __future__ import annotations

import math

import pytest
import torch

from pad_fast import functional, reference
from tests.kernels.peers.cases import BF16, DEVICE, F16, F32, F64, Case, assert_close, check_all
from tests.kernels.peers.cases import tests_of as of_all

POWERS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
ODD = (192, 760, 1128, 128256, 256128)
ROUNDED = ((BF16, 5e-2, 1e-8), (F32, 1e-6, 1e-8))  # Liger's
TABLES = {
    "QuACK": [
        Case(m, v, 0, dtype, 1e-5, 5e-5, scale=0.1)
        for dtype in (BF16, F16, F32)
        for m in (1, 77, 289)
        for v in sorted(POWERS + ODD)
    ],
    "TRL": [Case(128, 1024, 0, dtype, 1e-5, 1e-5) for dtype in (F64, F32, F16, BF16)],
    "Liger": [
        Case(b * t, v, 0, dtype, rtol, atol)
        for b, t, v in ((2, 2, 8), (9, 7, 41), (2, 4096, 32000), (3, 423, 32000))
        for dtype, rtol, atol in ROUNDED
    ],
}
IMPLS = pytest.mark.parametrize("impl", ["torch", "triton"])


@of_all(TABLES)
def test_values_and_gradients(cases, impl):
    check_all(cases, impl)


@IMPLS
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_trls_slices_with_blocks_far_apart(impl, dtype):
    """Two blocks 40 apart and a partial third; a slice of logits, and one of labels."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(2, 5, 2053, generator=g).to(dtype)
    base[..., :1024] += 20
    base[..., 1024:2048] -= 20
    labels = torch.randint(2053, (2, 5), generator=g)[:, 1:4]
    labels[0, 0] = 2052
    live = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]], dtype=torch.bool)[:, 1:4]
    labels, base = labels.masked_fill(~live, -100).to(DEVICE), base.to(DEVICE)
    found = []
    for module, leaf, options in (
        (functional, base, {"impl": impl}),
        (reference, base.double(), {}),
    ):
        leaf = leaf.detach().requires_grad_()
        logps = module.token_logprobs(leaf[:, 1:4], labels, temperature=0.7, **options)
        found += [logps.detach(), torch.autograd.grad(2 * logps.sum(), leaf)[0]]
    assert_close(found[0], found[2], 1e-5, 1e-5)
    assert_close(found[1], found[3], 5e-3 if dtype == BF16 else 1e-3, 1e-3)


@IMPLS
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_quacks_extreme_values(impl, dtype):
    """Equal logits of 10 or -10, one far above the others, and a shift by 100."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(1024, (16,), generator=g).to(DEVICE)

    def logps(logits, labels=labels):
        return functional.token_logprobs(logits.to(DEVICE), labels, impl=impl)

    for value in (10.0, -10.0):
        found = logps(torch.full((16, 1024), value, dtype=dtype))
        torch.testing.assert_close(-found, torch.full_like(found, math.log(1024)))
    peaked = torch.full((16, 1024), -10.0, dtype=dtype).to(DEVICE)
    peaked[torch.arange(16), labels] = 10.0
    assert (logps(peaked) > -1e-5).all()
    drawn = torch.randn(8, 512, generator=g)
    some = labels[:8] % 512
    torch.testing.assert_close(logps(drawn, some), logps(drawn + 100, some), rtol=1e-5, atol=1e-5)


@IMPLS
def test_quacks_first_and_last_column(impl):
    logits = (0.1 * torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))).to(DEVICE)
    for column in (0, 1023):
        labels = torch.full((16,), column, device=DEVICE)
        found = functional.token_logprobs(logits, labels, impl=impl)
        assert_close(found, logits.double().log_softmax(-1)[:, column], 1e-6, 1e-6)
