"""The rewards of a dataset's responses under the model that a training starts from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
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

    A row of which a response was cut is scored anew, since it came with the reward of the whole.
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
    places = _to_score(rows)
    if not places:
        return rows
    digests = gather_object([_digest(model)])
    if digests[0] is None:
        raise ValueError(
            f"anchor=start needs the whole model on a rank to score {len(places)} rows, and its "
            "weights are split already (DeepSpeed's stage 3 does so while it loads them); give "
            f"{COLUMN} in each row, from score_responses, and cut no response (max_length and "
            "max_completion_length)"
        )
    share = [places[k] for k in _share(len(places), accelerator.process_index, digests)]
    found = _scored(rows.select(share), model, args, accelerator) if share else []
    by_place: dict[int, Any] = dict(gather_object(list(zip(share, found, strict=True))))
    values = [by_place.get(i, given) for i, given in enumerate(values_of(rows, COLUMN))]
    feature = [Value("float64")]
    return rows.remove_columns(COLUMN).add_column(COLUMN, values, feature=feature)


def _to_score(rows: Dataset) -> list[int]:
    """The places of the rows to score: all, or those of which a live response was cut."""
    missing, cut = [], []
    for place, (anchor, teacher) in enumerate(_anchor_and_teacher(rows)):
        if anchor is None:
            missing.append(place)
        elif _lacks_one(anchor, teacher):
            cut.append(place)
    if missing and len(missing) < len(rows):
        raise ValueError(
            f"{COLUMN} must be in every row or in none, got {len(missing)} of {len(rows)} rows "
            f"without it, the first of them row {missing[0]}"
        )
    return missing or cut


def _anchor_and_teacher(rows: Dataset) -> Iterator[tuple[Any, Any]]:
    return zip(values_of(rows, COLUMN), values_of(rows, "teacher_rewards"), strict=True)


def _lacks_one(anchor: Sequence[float | None], teacher: Sequence[float | None]) -> bool:
    """Whether a response that has the teacher's reward lacks the anchor's."""
    pairs = zip(anchor, teacher, strict=True)
    return any(own is None and reward is not None for own, reward in pairs)


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
    """Raise ValueError unless the first rows of a stream have the column, and nothing is cut."""
    for anchor, teacher in _anchor_and_teacher(rows):
        if anchor is None or _lacks_one(anchor, teacher):
            found = "without" if anchor is None else "of which a response is cut, or its prompt"
            raise ValueError(
                f"anchor=start needs {COLUMN} in each row of a stream, since the model changes "
                f"before the stream is read; got a row {found}; score the responses as they are "
                "trained before, by score_responses"
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
