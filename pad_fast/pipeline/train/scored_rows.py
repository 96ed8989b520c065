"""The rows that a training reads of a round's scores, with rewards in its own unit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from datasets import Dataset

from pad_fast.files.own_files import read_tables
from pad_fast.files.stored_rows import RowFiles, Rows
from pad_fast.pipeline.parquet_rows import keep_rows, keep_shards, shard_paths
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.score.teacher_rewards import ANSWERS, in_unit_of
from pad_fast.training.config import PADConfig

# The columns of scored shards that PADTrainer reads, and the rewards under the student that
# sampled, which are those at the start of the training.
COLUMNS = ("prompt_ids", "completion_ids", "finish_reasons", "teacher_rewards", "from_teacher")
AT_START = "student_rewards"


def keep_scored_rows(files: RowFiles, run: RunContext, scores: Path, args: PADConfig) -> Rows:
    """The rows of scored shards, whose rewards are in the unit that a training has.

    Args:
        files: where they are kept.
        run: the run; its own ``normalize`` is the unit of what it sampled and scored.
        scores: the folder of the shards.
        args: of the training.
    """
    columns = (*COLUMNS, AT_START)
    if args.normalize == run.training.normalize:
        return keep_shards(files, scores, columns)
    parts = (part for path in shard_paths(scores) for part in read_tables(path, columns + ANSWERS))
    rows = (row for part in parts for row in part.to_pylist())
    changed = map(partial(in_unit_of, config=run.config, normalize=args.normalize), rows)
    return keep_rows(
        files, ({name: row[name] for name in row if name in columns} for row in changed)
    )


def with_anchor(run: RunContext, rows: Dataset, args: PADConfig) -> Dataset:
    """The rows with the column of the anchor, if the training needs it and the run has it.

    Without the column PADTrainer scores the student that it trains. It has to where the rewards of
    responses were not asked for when the run took them in, and where the training begins with
    weights in 4 bits, which are not those that sampled.
    """
    known = not rows.data.column(AT_START).null_count and not run.config.load_in_4bit
    if args.anchor == "start" and known:
        return rows.rename_column(AT_START, "anchor_rewards")
    return rows.remove_columns(AT_START)
