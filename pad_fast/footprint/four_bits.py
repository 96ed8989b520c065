"""Linear layers whose weights take 4 bits while an adapter is trained beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64  # weights that share a scale in float32


def pack_in_4_bits(model: Any) -> None:
    """Replace linear layers, without the output head, by ones that hold what bitsandbytes holds.

    Transformers has it do so for ``load_in_4bit``: weights of 4 bits, and a scale for each block.
    A layer's weights are unpacked for each product, and dropped.
    """
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                setattr(module, name, FourBitLinear(layer))


class FourBitLinear(nn.Linear):
    """A linear layer of packed weights without values, of which adapters read the sizes."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, self.unpacked = layer.bias, layer.weight.dtype
        count = layer.weight.numel()
        packed = torch.empty((count + 1) // 2, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", torch.empty(-(-count // BLOCK)), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _Unpacked.apply(input, self.out_features, self.unpacked)
        return product if self.bias is None else product + self.bias


class _Unpacked(torch.autograd.Function):
    """The product with weights that are unpacked in the forward, and again in the backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, features: int, dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = (features, rows.shape[-1]), dtype
        weight = torch.empty(ctx.shape, dtype=dtype).to(rows.dtype)
        return nn.functional.linear(rows, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = gradients
        weight = torch.empty(ctx.shape, dtype=ctx.dtype).to(grad.dtype)
        return grad @ weight, None, None
