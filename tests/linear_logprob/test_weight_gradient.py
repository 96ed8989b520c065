"""The gradient of a bfloat16 head where it is one product, and is written as one."""

import pytest
import torch

from pad_fast.functional import linear_token_logprobs
from pad_fast.linear_logprob import backward, matmul

ROWS, WIDTH, VOCABULARY = 40, 16, 300


def gradients(budget="auto", bias=False):
    draws = torch.Generator().manual_seed(3)
    shapes = ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    leaves = [torch.randn(shape, generator=draws).bfloat16().requires_grad_() for shape in shapes]
    hidden, weight, added = leaves if bias else [*leaves[:2], None]
    labels = torch.randint(VOCABULARY, (ROWS,), generator=draws)
    labels[::7] = -100
    logps = linear_token_logprobs(hidden, weight, labels, bias=added, memory_budget=budget)
    grad = torch.randn(ROWS, generator=draws)
    return torch.autograd.grad(logps, leaves[: 2 + bias], grad)


@pytest.fixture
def products(monkeypatch):
    """Calls of the library's product that write a whole gradient, which a CPU never makes else."""
    written = []

    def on_a_gpu(target, a, b):
        written.append(tuple(target.shape))
        return True

    # A CPU keeps factors in float32; a GPU those of the input's dtype.
    monkeypatch.setattr(matmul, "multiplies_into_float32", lambda tensor: False)
    monkeypatch.setattr(backward, "rounds_once", on_a_gpu)
    mm = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out=None: mm(a.to(out.dtype), b.to(out.dtype), out=out)
    )
    return written


@pytest.mark.parametrize("bias", [False, True])
def test_one_product_is_the_sum_of_slices(bias, request):
    wanted = gradients(bias=bias)
    written = request.getfixturevalue("products")
    found = gradients(bias=bias)
    assert written == [(VOCABULARY, WIDTH)]
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-2)


def test_rows_that_are_computed_again_are_never_in_one_product(products):
    gradients(budget=0)
    assert not products


def test_only_large_products_in_bfloat16_are_rounded_once(monkeypatch):
    monkeypatch.setattr(matmul, "multiplies_into_float32", lambda tensor: True)
    rows = torch.empty(8, 4096, device="meta", dtype=torch.bfloat16)

    def once(columns, dtype=torch.bfloat16, factor=torch.bfloat16):
        target = torch.empty(columns, 4096, device="meta", dtype=dtype)
        a = torch.empty(columns, 8, device="meta", dtype=factor)
        return matmul.rounds_once(target, a, rows)

    assert once(1024)
    assert not once(1023)  # few tiles: the library may add up parts that are rounded
    assert not once(1024, torch.float32)
    assert not once(1024, torch.float16)
    assert not once(1024, factor=torch.float16)
    monkeypatch.setattr(matmul, "multiplies_into_float32", lambda tensor: False)
    assert not once(1024)
