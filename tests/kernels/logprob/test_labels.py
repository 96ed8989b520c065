"""Which rows are read: ignored ones, labels that are no columns, and the bytes that move."""

import pytest
import torch
from pad_fast.kernels.logprob import launch

from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions
from tests.kernels.logprob.cases import CAPPED, DEVICE, OPTIONS, draw, kernel_of, reference_of


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_ignored_rows_do_not_leak(small_tiles, filling, options):
    logits, labels, grad = draw(2, 5, 200)
    logits[labels == -100] = filling
    grad[labels == -100] = filling
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    assert (logps[labels == -100] == 0).all()
    assert (dlogits[labels == -100] == 0).all()
    assert logps.isfinite().all()
    assert dlogits.isfinite().all()


def test_rows_without_an_upstream_gradient_are_zero(small_tiles):
    logits, labels, grad = draw(1, 3, 200)
    logits[0, 1], grad[0, 1] = torch.nan, 0.0
    _, dlogits = kernel_of(logits, labels, grad)
    assert (dlogits[0, 1] == 0).all()
    assert dlogits.isfinite().all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_traffic(traffic, inplace, options):
    """One read of live rows forward; one read of live rows and one write of all rows backward."""
    logits, labels, grad = draw(1, 5, 20000, dtype=torch.bfloat16)
    labels[0, 1] = -100  # two of five rows
    values = TokenOptions.checked(**options, ignore_index=-100)
    live, every = 3 * 20000 * 2, 5 * 20000 * 2
    _, *rows = launch.forward(logits, labels, values)
    assert live <= traffic.loaded <= 1.02 * live
    assert traffic.stored <= 0.02 * live
    traffic.loaded = traffic.stored = 0
    dlogits = logits if inplace else torch.empty_like(logits)
    launch.backward(grad, logits, labels, rows, values, dlogits)
    assert live <= traffic.loaded <= 1.02 * live
    assert every <= traffic.stored <= 1.02 * every


@pytest.mark.parametrize("wrong", [-1, 200, 2**31, 2**32 + 5, -(2**40)])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_label_that_is_no_column_is_nan_and_not_read(small_tiles, wrong, softcap):
    """Log-probability and gradient are NaN, as on a GPU, where label values are not checked."""
    logits, labels, grad = draw(1, 3, 200)
    labels[0, 1] = wrong
    options = TokenOptions(softcap=softcap)
    logps, *rows = launch.forward(logits, labels, options)
    dlogits = torch.zeros_like(logits)
    launch.backward(grad, logits, labels, rows, options, dlogits)
    plain, *plain_rows = logits_torch.logits_forward(logits, labels, options)
    dplain = torch.zeros_like(logits)
    logits_torch.logits_backward(grad, logits, labels, *plain_rows, options, dplain)
    for values, gradients in ((logps, dlogits), (plain, dplain)):
        assert values.isnan().tolist() == [[False, True, False]]
        assert gradients[0, 1].isnan().all()
        assert gradients[0, ::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_label_dtypes_and_ignore_index(small_tiles, dtype):
    logits, labels, grad = draw(1, 5, 200)
    labels = torch.where(labels == -100, 17, labels)
    exact, _ = reference_of(logits, labels, grad, torch.float64, ignore_index=17)
    logps, dlogits = kernel_of(logits, labels.to(dtype), grad, ignore_index=17)
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=1e-5)
    assert (dlogits[labels == 17] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 10), (2, 0, 10)])
def test_no_rows(shape):
    logits, labels = (
        torch.zeros(shape, device=DEVICE),
        torch.zeros(shape[:2], dtype=torch.int64, device=DEVICE),
    )
    logps, dlogits = kernel_of(logits, labels, torch.zeros(shape[:2], device=DEVICE))
    assert logps.shape == shape[:2]
    assert dlogits.shape == shape
