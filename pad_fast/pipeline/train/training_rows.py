"""How many tokens the rows of a training have."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

TOGETHER = 1024  # rows that are counted at a time


def live_tokens(rows: Any) -> int:
    """The tokens of prepared rows that are trained on: prompts, and responses with a reward."""
    found = 0
    for batch in rows.with_format("arrow").iter(TOGETHER):
        column = {name: batch.column(name).combine_chunks() for name in batch.column_names}
        lengths = pc.list_value_length(column["completion_ids"].flatten())
        live = column["teacher_rewards"].flatten().is_valid()
        found += len(column["prompt_ids"].flatten())
        found += pc.sum(lengths.filter(live)).as_py() or 0
    return found


def count_tokens(rows: Dataset, *columns: str) -> int:
    """The tokens in columns of token ids, or of lists of them."""
    found = 0
    for chunk in (chunk for name in columns for chunk in rows.data.column(name).chunks):
        while pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            chunk = chunk.flatten()
        found += len(chunk)
    return found
