"""Batches without a row, or without one that counts: on every way through the operation."""

import pytest
import torch

from pad_fast import functional
from tests.kernels.linear_logprob.cases import BUDGETS, DEVICE

GRADIENTS = {"none": (), "hidden": (0,), "head": (1, 2), "all": (0, 1, 2)}


@BUDGETS
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("needed", GRADIENTS)
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_no_row_has_no_log_probability_and_no_gradient(rows, needed, impl, budget, dtype):
    hidden, weight, bias = (
        torch.ones(size, dtype=dtype, device=DEVICE) for size in ((rows, 24), (300, 24), (300,))
    )
    labels = torch.full((rows,), -100, device=DEVICE)
    leaves = [(hidden, weight, bias)[i].requires_grad_() for i in GRADIENTS[needed]]
    logps = functional.linear_token_logprobs(
        hidden, weight, labels, bias=bias, impl=impl, memory_budget=budget
    )
    assert logps.shape == (rows,)
    assert not logps.any()
    if leaves:
        for gradient, leaf in zip(torch.autograd.grad(logps.sum(), leaves), leaves, strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()
