"""The arguments of attention over one packed row, as every implementation takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pad_fast.models.layout import RowLayout

UNSUPPORTED = ("s_aux", "sinks", "position_bias")


@dataclass(frozen=True)
class AttentionInputs:
    """softmax(softcap * tanh(scale * q k^T / softcap)) v over what each token of the row sees.

    A token sees those of its own response and of its prompt that are not behind it. A ``window``
    hides those that are at least that many positions away. Without ``softcap`` there is no cap.
    Every implementation returns (1, T, H, Dv).
    """

    query: Tensor  # (1, H, T, Dk)
    key: Tensor  # (1, Hk, T, Dk), H a multiple of Hk
    value: Tensor  # (1, Hk, T, Dv)
    layout: RowLayout
    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0

    @property
    def group_size(self) -> int:
        """How many query heads share a key head."""
        return self.query.shape[1] // self.key.shape[1]


def read_inputs(
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: RowLayout,
    options: Mapping[str, Any],
    *,
    training: bool,
) -> AttentionInputs:
    """The inputs of a call by transformers, with the keyword arguments ``options``.

    Raises:
        NotImplementedError: options that change the softmax or the mask in ways that
            :class:`AttentionInputs` does not describe, such as attention sinks.
    """
    for name in UNSUPPORTED:
        if options.get(name) is not None:
            raise NotImplementedError(f"its attention takes {name}")
    if options.get("is_causal") is False:
        raise NotImplementedError("its attention is not causal")
    scaling = options.get("scaling")
    return AttentionInputs(
        *qkv,
        layout,
        scale=qkv[0].shape[-1] ** -0.5 if scaling is None else scaling,
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        dropout=options.get("dropout", 0.0) if training else 0.0,
    )
