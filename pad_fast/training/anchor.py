"""The rewards of a dataset's responses under the model that a training starts from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, Value
from torch import nn

from pad_fast.models.scoring import score_responses
from pad_fast.training.batch_layout import head_budget
from pad_fast.training.config import PADConfig
from pad_fast.training.placement import has_all_weights, placed
from pad_fast.training.prepared_rows import values_of

logger = logging.getLogger("pad_fast")

COLUMN = "anchor_rewards"
SCORED_TOGETHER = 8192  # rows whose token ids are in memory


def with_anchor_rewards(
    rows: Dataset, model: nn.Module, args: PADConfig, accelerator: Accelerator
) -> Dataset:
    """Prepared rows with the model's rewards of their responses, unless they have them already.

    Each rank scores its share of the rows, and all get all of them. A rank without the weights of
    rank 0, which FSDP may give it later, scores none.

    Args:
        rows: prepared rows.
        model: the student before its training.
        args: how rewards are computed.
        accelerator: the trainer's; its autocast is that of the training.

    Raises:
        ValueError: only some of the rows have the column, or no rank holds the whole model.
    """
    missing = [values is None for values in values_of(rows, COLUMN)]
    if not any(missing):
        return rows
    if not all(missing):
        raise ValueError(
            f"{COLUMN} must be in every row or in none, got {missing.count(True)} of "
            f"{len(missing)} rows without it, the first of them row {missing.index(True)}"
        )
    digests = gather_object([_digest(model)])
    if digests[0] is None:
        raise ValueError(
            f"anchor=start needs the whole model on a rank to score {len(rows)} rows, and its "
            "weights are split already (DeepSpeed's stage 3 does so while it loads them); give "
            f"{COLUMN} in each row, from score_responses"
        )
    share = _share(len(rows), accelerator.process_index, digests)
    found = _scored(rows.select(share), model, args, accelerator) if len(share) else []
    by_place: dict[int, Any] = dict(gather_object(list(zip(share, found, strict=True))))
    values = [by_place[i] for i in range(len(rows))]
    feature = [Value("float64")]
    return rows.remove_columns(COLUMN).add_column(COLUMN, values, feature=feature)


def _digest(model: nn.Module) -> str | None:
    """A hash of the beginnings of all weights; None on a rank that does not hold all of them."""
    if not has_all_weights(model):
        return None
    found = hashlib.sha256()
    for weight in model.parameters():
        found.update(repr(weight.detach().flatten()[:16].tolist()).encode())
    return found.hexdigest()


def _share(count: int, rank: int, digests: Sequence[str | None]) -> range:
    """The places of the rows that a rank scores: those with rank 0's weights take turns."""
    able = [other for other, digest in enumerate(digests) if digest == digests[0]]
    return range(able.index(rank), count, len(able)) if rank in able else range(0)


def check_anchor_rewards(rows: Dataset) -> None:
    """Raise ValueError unless the first rows of a stream have the column."""
    if any(values is None for values in values_of(rows, COLUMN)):
        raise ValueError(
            f"anchor=start needs {COLUMN} in each row of a stream, since the model changes before "
            "the stream is read; got a row without; score the responses before, by score_responses"
        )


def _scored(
    rows: Dataset, model: nn.Module, args: PADConfig, accelerator: Accelerator
) -> list[list[float]]:
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("normalize", "temperature", "share_prefix", "impl")
    }
    if args.max_tokens_per_step is not None:
        options["max_tokens_per_batch"] = args.max_tokens_per_step
    found = []
    with torch.no_grad(), placed(model, args.device) as there, accelerator.autocast():
        if not there:
            logger.warning(
                "the model does not fit on %s as a whole, so that its rewards of %d rows for the "
                "anchor are computed on the CPU; with %s in the rows they need not be",
                args.device,
                len(rows),
                COLUMN,
            )
        for part in rows.select_columns(["prompt_ids", "completion_ids"]).iter(SCORED_TOGETHER):
            found += score_responses(
                model,
                part["prompt_ids"],
                part["completion_ids"],
                memory_budget=head_budget(args),
                **options,
            )
    return found
