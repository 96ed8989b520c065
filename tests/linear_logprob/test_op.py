"""The contracts of the operations on hidden states: schema, fake tensors, autograd."""

import torch
from logprobs import draw

from pad_fast.linear_logprob import op as linear_op


def test_opcheck(small_tiles):
    hidden, weight, bias, labels, grad = draw(rows=(6,), width=4, vocabulary=20)
    options = (0.7, 30.0, 1.3, -100, "torch")
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    rows, count = linear_op.live_rows(labels, -100)
    torch.library.opcheck(linear_op.live_rows.library, (labels, -100))
    given = rows[:5]
    for saved in (0, 2, 6):
        torch.library.opcheck(
            linear_op.linear_token_logprobs.library,
            (*leaves, labels, rows, count, saved, False, False, 2, *options),
        )
    torch.library.opcheck(
        linear_op.linear_token_logprobs.library,
        (hidden, weight, None, labels, given, None, 4, False, False, 2, *options),
    )
    frozen = (hidden, weight.detach(), None)
    torch.library.opcheck(
        linear_op.linear_token_logprobs.library,
        (*frozen, labels, rows, count, 0, True, False, 2, *options),
    )
    detached = [x.detach() for x in leaves]
    _, *kept, _ = linear_op.linear_token_logprobs(
        *detached, labels, rows, count, 4, False, False, 2, *options
    )
    for needed in ((True, True, True), (True, False, False)):
        arguments = (grad, *detached, labels, rows, count, *kept, *needed, 2, *options)
        torch.library.opcheck(linear_op.linear_token_logprobs_backward.library, arguments)
    _, _, total, *_, unscaled = linear_op.linear_token_logprobs(
        *detached, labels, rows, count, 0, True, False, 2, *options
    )
    torch.library.opcheck(linear_op.scale_live_rows.library, (grad, rows, count, total, unscaled))
