"""The likelihood of responses, which a loss of differences of rewards leaves free.

A ranking does not change if a constant is added to all rewards of a prompt, so nothing in it holds
up the log-probability of good responses. The term here does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weights = Callable[[Tensor, Tensor, "Tensor | None", float], Tensor]


def _on_best(teacher: Tensor, live: Tensor, own: Tensor | None, beta: float) -> Tensor:
    best = teacher.masked_fill(~live, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(teacher).scatter(1, best, 1.0) * live


def _on_teacher(teacher: Tensor, live: Tensor, own: Tensor | None, beta: float) -> Tensor:
    if own is None:
        raise ValueError(
            'likelihood_on="teacher" needs from_teacher, True for the responses that the teacher '
            "wrote itself; got none"
        )
    theirs = (own & live).to(teacher.dtype)
    return theirs / theirs.sum(1, keepdim=True).clamp(min=1)


def _weighted(teacher: Tensor, live: Tensor, own: Tensor | None, beta: float) -> Tensor:
    # The least finite number and not -inf, whose softmax over a prompt without live ones is NaN.
    least = torch.finfo(teacher.dtype).min
    return (beta * teacher).masked_fill(~live, least).softmax(1) * live


LIKELIHOODS: dict[str, tuple[str, Weights]] = {
    "best": ("the response that the teacher rewards most", _on_best),
    "teacher": ("the teacher's own response", _on_teacher),
    "weighted": ("each weighted by softmax(likelihood_beta * teacher_rewards)", _weighted),
}


def negative_likelihood(
    student: Tensor,  # (P, N)
    teacher: Tensor,  # (P, N)
    live: Tensor,  # (P, N) bool
    own: Tensor | None,  # (P, N) bool
    on: str,
    beta: float,
) -> Tensor:  # (P,)
    """-sum_i w_i r_i of each prompt, r_i being the student's reward of response i.

    With rewards that are means over a response's tokens it is SFT in nats per token, each response
    counting alike whatever its length; with sums it is that in nats.

    Args:
        student: rewards without beta and without an anchor.
        teacher: rewards.
        live: True for the responses that count; the others may hold NaN.
        own: True for the teacher's own responses, for ``on`` = "teacher".
        on: a key of :data:`LIKELIHOODS`, which says how the responses are weighted.
        beta: factor of the teacher's rewards for "weighted".

    Returns:
        The term of each prompt; 0 where no response counts.
    """
    _, weights_of = LIKELIHOODS[on]
    # In the wider dtype, in which the best response is the one that losses of rankings take.
    wide = torch.promote_types(student.dtype, teacher.dtype)
    dead = ~live
    known = teacher.to(wide).masked_fill(dead, 0)
    weights = weights_of(known, live, own, beta).to(student.dtype)
    return -(weights * student.masked_fill(dead, 0)).sum(1)
