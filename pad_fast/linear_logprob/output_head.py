"""An output head as one argument: its weight with what makes logits of its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OutputHead:
    """logits = softcap * tanh(logit_scale * (h @ weight.T + bias) / softcap).

    Without a softcap (None), logits = logit_scale * (h @ weight.T + bias).
    """

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    softcap: float | None
    logit_scale: float


def weight_and_options(
    weight: Tensor | OutputHead, bias: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """The weight, the bias and the options of a call that was given a weight or a whole head.

    Raises:
        ValueError: a whole head, and something of it once more.
    """
    if not isinstance(weight, OutputHead):
        return weight, bias, options
    own = {"softcap": weight.softcap, "logit_scale": weight.logit_scale}
    plain = {"softcap": None, "logit_scale": 1.0}
    twice = [name for name in own if options.get(name, plain[name]) != plain[name]]
    twice += ["bias"] * (bias is not None)
    if twice:
        raise ValueError(
            "weight is an OutputHead, which has its own bias, softcap and logit_scale; leave out "
            f"{' and '.join(twice)}, or give the head's weight alone"
        )
    return weight.weight, weight.bias, {**options, **own}
