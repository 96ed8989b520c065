"""Which rows belong to which response, and how their log-probabilities become a reward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pad_fast import argument_checks
from pad_fast.logprob import response_op

NORMALIZATIONS = ("mean", "sum")


@dataclass(frozen=True)
class Responses:
    """R responses: padded, one a row of ``labels`` (R, T), or packed in one dimension (M,)."""

    labels: Tensor  # (R, T) or (M,); ignore_index also in rows of no response
    ids: Tensor | None  # (M,), the response of each packed row, -1 for none
    count: int  # R
    ignore_index: int
    mean: bool  # a reward is the mean over live tokens; else their sum

    @classmethod
    def checked(
        cls,
        labels: Tensor,
        response_ids: Tensor | None,
        num_responses: int | None,
        ignore_index: int,
        normalize: str,
    ) -> Responses:
        """The responses as a user describes them; raises ValueError for what does not fit.

        Packed rows without ``num_responses`` are searched for the largest id, which waits for the
        device.
        """
        argument_checks.check_choice("normalize", normalize, NORMALIZATIONS)
        argument_checks.check_responses(labels, response_ids, num_responses)
        if response_ids is None:
            return cls(labels, None, labels.shape[0], ignore_index, normalize == "mean")
        if num_responses is None:
            num_responses = int(response_ids.max()) + 1 if response_ids.numel() else 0
        labels = labels.masked_fill(response_ids < 0, ignore_index)
        return cls(labels, response_ids, num_responses, ignore_index, normalize == "mean")

    def rewards(self, logps: Tensor, impl: str) -> tuple[Tensor, Tensor]:  # (R,) each
        """The reward of each response from the log-probabilities of its tokens, and its length."""
        return response_op.response_sums(
            logps, self.labels, self.ids, self.count, self.ignore_index, self.mean, impl
        )

    def lengths(self) -> Tensor:  # (R,) int64
        """The number of live tokens of each response."""
        live = (self.labels != self.ignore_index).long()
        return response_op.sum_by_response(live, self.ids, self.count)
