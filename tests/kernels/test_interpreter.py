"""Triton's interpreter, as tests/interpreter.py mends it, computes what a GPU computes."""

import os

import pytest
import torch
import triton
from pad_fast.kernels.common import trial
from triton import language as tl

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="is about the interpreter")
]


@triton.jit
def _copy(x, y, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places))


@triton.jit
def _product(x, y, out, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + places, tl.dot(tl.load(x + places), tl.load(y + places)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stores_round_to_nearest_even(dtype):
    values = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    values[:256] *= 2.0 ** torch.arange(-128, 128)
    one, step = torch.ones(()), torch.finfo(dtype).eps
    values[256:264] = torch.stack(
        [one + step * k / 4 for k in (1, 2, 3, 6)]  # two ties: to 1, and to 1 + 2 steps
        + [2 - one * step / 2, -one - step / 2, one * torch.inf, one * torch.nan]
    )
    wanted = values.to(dtype)
    if dtype == torch.float16:
        values, wanted = values.clamp(-65000, 65000), values.clamp(-65000, 65000).to(dtype)
    found = torch.empty_like(wanted)
    _copy[(1,)](values, found, SIZE=1024)
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
    assert torch.equal(found.isnan(), wanted.isnan())


def test_products_of_bfloat16():
    x, y = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = torch.empty(16, 16)
    _product[(1,)](x, y, found, SIZE=16)
    torch.testing.assert_close(found, x.float() @ y.float(), rtol=1e-6, atol=1e-6)


def test_the_smallest_kernel_writes_its_number():
    assert trial.launch(torch.device(DEVICE)).tolist() == [1]
