"""What a case is drawn from: one integer seed, and a record of everything that came out of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A part of a tensor as it reaches the operation; each is a view of a tensor that is drawn.
LAYOUTS = ("contiguous", "sliced columns", "sliced rows", "every second", "transposed", "expanded")


class Draw:
    """Draws the numbers and tensors of one case and keeps them by name, to be printed."""

    def __init__(self, seed: int):
        self.seed = seed
        self.case: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.numbers = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def keep(self, name: str, value: Any) -> Any:
        self.case[name] = value
        return value

    def choice(self, name: str, values: Sequence, weights: Sequence[float] | None = None) -> Any:
        return self.keep(name, self.numbers.choices(list(values), weights)[0])

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return self.keep(name, self.numbers.randint(low, high))

    def chance(self, name: str, probability: float) -> bool:
        return self.keep(name, self.numbers.random() < probability)

    def magnitude(self, name: str, low: float, high: float) -> float:
        """A positive number whose logarithm is uniform."""
        return self.keep(name, math.exp(self.numbers.uniform(math.log(low), math.log(high))))

    def tensor(self, name: str, value: Tensor) -> Tensor:
        self.tensors[name] = value
        return value

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers from ``low`` to ``high`` - 1."""
        return torch.randint(low, high, shape, generator=self.generator)

    def mask(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(*shape) < probability

    def shuffled(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)

    def laid_out(
        self, name: str, shape: tuple[int, ...], layouts: Sequence[str] = LAYOUTS
    ) -> tuple[tuple[int, ...], Callable[[Tensor], Tensor]]:
        """The shape of a base tensor, and the view of it that has ``shape``."""
        if len(shape) < 2 or 0 in shape:
            layouts = ("contiguous",)
        layout = self.choice(f"{name} layout", layouts)
        first, last = shape[0], shape[-1]
        if layout == "sliced columns":
            return (*shape[:-1], last + 3), lambda base: base[..., 2 : 2 + last]
        if layout == "sliced rows":
            return (*shape[:-2], shape[-2] + 2, last), lambda base: base[..., 1:-1, :]
        if layout == "every second":
            return (*shape[:-1], 2 * last), lambda base: base[..., ::2]
        if layout == "transposed":
            return (*shape[:-2], last, shape[-2]), lambda base: base.transpose(-1, -2)
        if layout == "expanded":
            return (1, *shape[1:]), lambda base: base.expand(first, *shape[1:])
        return shape, lambda base: base


def describe(draw: Draw, whole: bool = False) -> str:
    """Seed, numbers and tensors of a case; large tensors in full only with ``whole``."""
    lines = [f"seed {draw.seed}", *(f"  {name} = {value!r}" for name, value in draw.case.items())]
    for name, value in draw.tensors.items():
        lines.append(f"  {name}: {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}")
        if whole or value.numel() <= 48:
            lines[-1] += f" = {value.detach().tolist()}"
    return "\n".join(lines)
