"""The rewards of a dataset's responses under the model that a training starts from."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, Value
from torch import nn
from transformers.integrations import is_fsdp_enabled

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

    Each rank scores its share of the rows, and all get all of them. Rank 0 scores alone where FSDP
    has let it alone load the weights.

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
    if not is_fsdp_enabled() and not has_all_weights(model):
        raise ValueError(
            f"anchor=start needs the whole model on each rank to score {len(rows)} rows, and its "
            "weights are split already (DeepSpeed's stage 3 does so while it loads them); give "
            f"{COLUMN} in each row, from score_responses"
        )
    share = _share(len(rows), accelerator)
    found = _scored(rows.select(share), model, args, accelerator) if len(share) else []
    by_place: dict[int, Any] = dict(gather_object(list(zip(share, found, strict=True))))
    values = [by_place[i] for i in range(len(rows))]
    feature = [Value("float64")]
    return rows.remove_columns(COLUMN).add_column(COLUMN, values, feature=feature)


def _share(count: int, accelerator: Accelerator) -> range:
    """The places of the rows that this rank scores."""
    if is_fsdp_enabled():  # with cpu_ram_efficient_loading; the other ranks have empty weights
        return range(count if accelerator.is_main_process else 0)
    return range(accelerator.process_index, count, accelerator.num_processes)


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
