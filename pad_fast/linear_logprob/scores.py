"""What rows keep of the forward for the backward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pad_fast.linear_logprob.memory_budget import padded
from pad_fast.logprob.softmax import accumulator


@dataclass(frozen=True)
class Scores:
    """Scores of rows: row_scale * values = d log p / d u, u the logits as the head gives them.

    A kernel that goes over a row of logits once writes values before it knows their row_scale.
    """

    values: Tensor  # (K, V and padding)
    row_scale: Tensor  # (K,), in the accumulator's dtype

    @classmethod
    def empty(cls, hidden: Tensor, rows: int, vocabulary: int) -> Scores:
        """Room for the scores of so many rows."""
        row_scale = hidden.new_empty(rows, dtype=accumulator(hidden.dtype))
        return cls(hidden.new_empty(rows, padded(vocabulary)), row_scale)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The values and their scales."""
        return self.values, self.row_scale

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Scores:
        return Scores(self.values[rows], self.row_scale[rows])

    def unpadded(self, vocabulary: int) -> Scores:
        """The same without the columns of the padding."""
        return Scores(self.values[:, :vocabulary], self.row_scale)
