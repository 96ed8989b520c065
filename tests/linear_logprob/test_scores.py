"""What rows keep for the backward: row_scale * values is d log p / d logits."""

import pytest
import torch
from logprobs import draw

from pad_fast import reference
from pad_fast.linear_logprob import op as linear_op

EIGHT_BITS = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 0}


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_rounding_leaves_the_labels_score_as_it_is(dtype, softcap):
    """It is as large as all others of its row together, which take its rounding instead."""
    hidden, weight, bias, labels, _ = draw(dtype)
    hidden, labels = hidden.flatten(0, -2), labels.flatten().clamp(min=0)
    rows, options = torch.arange(len(labels)), (1.0, softcap or 0.0, 1.0, -100, "torch")
    _, _, _, values, row_scale, _ = linear_op.linear_token_logprobs(
        hidden, weight, bias, labels, rows, None, len(rows), False, False, 8, *options
    )
    logits = hidden.double() @ weight.double().T + bias.double()
    leaf = logits.requires_grad_()
    logps = reference.token_logprobs(leaf, labels, softcap=softcap)
    (want,) = torch.autograd.grad(logps.sum(), leaf)
    got = values[:, : len(weight)].double() * row_scale.double().unsqueeze(1)
    places = labels.unsqueeze(1)
    torch.testing.assert_close(got.gather(1, places), want.gather(1, places), rtol=2e-5, atol=1e-6)
    error = (got - want).abs() - 2 * EIGHT_BITS[dtype] * want.abs()
    assert (error <= 1e-6).all()
    assert (row_scale != 1).any() == (dtype != torch.float32)
