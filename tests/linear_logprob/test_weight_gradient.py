"""The gradient of a head where it is one product, and is written as one."""

import pytest
import torch

from pad_fast.functional import linear_token_logprobs
from pad_fast.linear_logprob import backward, matmul, memory_budget
from pad_fast.logprob import torch_impl as logits_torch

ROWS, WIDTH, VOCABULARY = 40, 16, 300


def gradients(budget="auto", bias=False, dtype=torch.bfloat16):
    draws = torch.Generator().manual_seed(3)
    shapes = ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    leaves = [torch.randn(shape, generator=draws).to(dtype).requires_grad_() for shape in shapes]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_take_all_rows_where_nothing_is_widened(monkeypatch, dtype):
    """In float32 each gradient is one product; else a few rows are widened at a time."""
    monkeypatch.setattr(memory_budget, "CPU_ROWS", 16)
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", 64)
    of_weight, of_hidden = [], []
    mm, times_weight = torch.mm, backward.times_weight

    def whole_mm(a, b, out=None):
        of_weight.append(len(a))
        return mm(a, b, out=out)

    def watched(logp_grad, head):
        of_hidden.append(len(logp_grad))
        return times_weight(logp_grad, head)

    monkeypatch.setattr(backward.torch, "mm", whole_mm)
    monkeypatch.setattr(backward, "times_weight", watched)
    gradients(dtype=dtype)
    one = dtype == torch.float32
    assert (VOCABULARY in of_weight) == one
    assert of_hidden == ([34] if one else [16, 16, 2])  # 34 of 40 rows are live


def test_rows_that_are_computed_again_are_never_in_one_product(products):
    gradients(budget=0)
    assert not products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_wide_product_is_rounded_once(dtype):
    a, b = torch.empty(3, 5, dtype=dtype), torch.empty(5, 2, dtype=dtype)
    assert matmul.rounds_once(torch.empty(3, 2, dtype=dtype), a, b)
    assert not matmul.rounds_once(torch.empty(3, 2, dtype=torch.float16), a, b)


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
