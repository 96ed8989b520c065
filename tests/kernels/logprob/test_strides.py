"""Memory layout: strides, 64-bit offsets, and the bits of a row in any batch."""

import pytest
import torch
from pad_fast.kernels.logprob import launch

from pad_fast.logprob.softmax import TokenOptions
from tests.kernels.logprob.cases import CAPPED, DEVICE, OPTIONS, draw, kernel_of


@pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu.py has the real thing")
def test_row_offsets_are_64_bit(small_tiles):
    """Rows more than 2^31 elements apart, in a storage of which nothing between them is touched."""
    far, vocabulary = 2**31 + 8, 100
    torch.use_deterministic_algorithms(False)  # would fill 4 GB; the fixture sets it back
    logits = torch.empty(far + vocabulary, dtype=torch.float16).as_strided(
        (2, 1, vocabulary), (far, vocabulary, 1)
    )
    logits.copy_(draw(2, 1, vocabulary, dtype=torch.float16)[0])
    labels, grad = torch.tensor([[3], [5]]), torch.ones(2, 1)
    expected = kernel_of(logits.contiguous(), labels, grad)
    for got, want in zip(kernel_of(logits, labels, grad), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.skipif(DEVICE == "cuda", reason="needs 10 GB of addresses without memory")
def test_column_offsets_are_64_bit(small_tiles):
    """Columns so far apart that one tile is more than 2^31 elements wide.

    The second of three rows is ignored: zeroed and not read.
    """
    vocabulary, apart = 290, 2**31 // small_tiles.block(2) + 16
    torch.use_deterministic_algorithms(False)  # would fill 10 GB; the fixture sets it back
    logits = torch.empty(vocabulary * apart, dtype=torch.float16).as_strided(
        (1, 3, vocabulary), (24, 8, apart)
    )
    near, labels, grad = draw(1, 3, vocabulary, dtype=torch.float16)
    logits.copy_(near)
    labels[0, 0], labels[0, 1] = 200, -100
    expected, got = (launch.forward(x, labels, TokenOptions()) for x in (near, logits))
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    for x in (near, logits):
        launch.backward(grad, x, labels, expected[1:], TokenOptions(), x)
    assert torch.equal(logits, near)


def views(logits):
    """The same values in other memory layouts, with their names."""
    r, t, v = logits.shape
    longer = torch.full((r, t + 1, v), torch.nan, device=DEVICE)
    longer[:, :-1] = logits
    shifted = torch.full((r * t * v + 1,), torch.nan, device=DEVICE)
    shifted[1:] = logits.flatten()
    yield "slice along T", longer[:, :-1]
    yield "transposed", logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "rows transposed", logits.transpose(0, 1).contiguous().transpose(0, 1)
    yield "one element off", shifted[1:].view(r, t, v)
    yield "part of the columns", torch.cat([logits, logits], -1)[..., :v]


@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_strides_change_no_bit(small_tiles, options):
    logits, labels, grad = draw(2, 3, 200)
    expected = kernel_of(logits, labels, grad, **options)
    for name, view in views(logits):
        for got, want in zip(kernel_of(view, labels, grad, **options), expected, strict=True):
            assert torch.equal(got, want), name


def test_expanded_arguments(small_tiles):
    logits, labels, grad = draw(1, 1, 200)
    expected, dexpected = kernel_of(logits, labels, grad)
    logps, dlogits = kernel_of(logits.expand(2, 3, 200), labels.expand(2, 3), grad.expand(2, 3))
    assert torch.equal(logps, expected.expand(2, 3))
    assert torch.equal(dlogits, dexpected.expand(2, 3, 200))


def test_a_row_has_the_same_bits_in_any_company(small_tiles):
    logits, labels, grad = draw(2, 4, 300)
    logps, dlogits = kernel_of(logits, labels, grad, **CAPPED)
    for r in range(2):
        for t in range(4):
            alone = kernel_of(
                logits[r : r + 1, t : t + 1],
                labels[r : r + 1, t : t + 1],
                grad[r : r + 1, t : t + 1],
                **CAPPED,
            )
            assert torch.equal(alone[0][0, 0], logps[r, t])
            assert torch.equal(alone[1][0, 0], dlogits[r, t])
