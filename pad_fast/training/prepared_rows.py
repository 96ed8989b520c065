"""A dataset of rows as token ids: what was cut and left out is counted and said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, Value
from torch.utils import data

from pad_fast.training.dataset_rows import COUNTS, RowReader

logger = logging.getLogger("pad_fast")

# The types are named: they could not be seen in rows without rewards or responses.
FEATURES = Features(
    {
        "prompt_ids": [Value("int32")],
        "completion_ids": [[Value("int32")]],
        "teacher_rewards": [Value("float64")],
        "anchor_rewards": [Value("float64")],
        "from_teacher": [Value("bool")],
        "clipped": [Value("bool")],
        **dict.fromkeys(COUNTS, Value("int64")),
        "length": Value("int64"),
    }
)
TOGETHER = 256  # rows of a dataset that are read or written at a time
LOOKED_AT = 1000  # rows at the start of a stream, for what a training decides before it begins


def is_stream(dataset: Any) -> bool:
    """Whether a dataset has no length and is read row by row."""
    return isinstance(dataset, (datasets.IterableDataset, data.IterableDataset))


class PreparedStream(data.IterableDataset):
    """Rows for :class:`PADCollator` from a stream, read while the training runs.

    Args:
        source: a datasets.IterableDataset or one of torch, which can be read several times.
        reader: reads a row.
        least_live: the fewest live responses of a row that is kept.

    Raises:
        ValueError: a row cannot be read, or no row at the start of the stream can be trained on.
    """

    def __init__(self, source: Any, reader: RowReader, least_live: int = 2) -> None:
        self.source, self.reader, self.least_live = source, reader, least_live
        begin = list(islice(iter(source), LOOKED_AT))
        name = f"first {len(begin)} rows of the train"
        self.first = prepare_dataset(begin, reader, name=name, least_live=least_live)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(self.source):
            found = self.reader(row, index)
            if found["num_live"] >= self.least_live:
                yield {name: value for name, value in found.items() if name not in COUNTS}

    def set_epoch(self, epoch: int) -> None:
        """Shuffle otherwise in the next pass, where the source does that."""
        getattr(self.source, "set_epoch", lambda _: None)(epoch)


def first_rows(rows: Any) -> Any:
    """Prepared rows to decide by: all of a dataset, and the first of a stream."""
    return rows.first if isinstance(rows, PreparedStream) else rows


def values_of(rows: Dataset, name: str) -> Iterator[Any]:
    """The values of a column of a dataset, of which a batch is in memory at a time."""
    for batch in rows.select_columns([name]).with_format("arrow").iter(TOGETHER):
        yield from batch.column(name).to_pylist()


def prepare_dataset(
    dataset: Any,
    reader: RowReader,
    *,
    name: str = "train",
    num_proc: int | None = None,
    least_live: int = 2,
) -> Dataset:
    """Rows for :class:`PADCollator`, less those with too few live responses.

    Args:
        dataset: a datasets.Dataset, or anything with a length and rows, such as a list.
        reader: reads a row.
        name: the dataset's name in messages and in the log, which counts what was cut and dropped.
        num_proc: processes for a datasets.Dataset.
        least_live: the fewest live responses of a row that is kept.

    Returns:
        The prepared dataset.

    Raises:
        ValueError: a row cannot be read; the dataset has no length or no rows; none is left.
    """
    _check_length(dataset, name)
    if isinstance(dataset, Dataset):
        options = {
            "with_indices": True,
            "remove_columns": dataset.column_names,
            "features": FEATURES,
            "num_proc": num_proc,
            "writer_batch_size": TOGETHER,
        }
        rows = dataset.map(reader, **options, desc=f"Preparing {name} rows")
    else:  # read here, since Arrow's errors name no row
        rows = Dataset.from_list(
            [reader(dict(dataset[index]), index) for index in range(len(dataset))],
            features=FEATURES,
        )
    live = np.fromiter(values_of(rows, "num_live"), np.int64)
    kept = rows.select(np.flatnonzero(live >= least_live)).remove_columns(list(COUNTS))
    counts = {column: sum(values_of(rows, column)) for column in COUNTS}
    dropped = counts["num_long"] if reader.long_prompts == "drop" else 0
    _tell(name, reader, counts, len(rows))
    if few := len(rows) - len(kept) - dropped:
        logger.warning(
            "%s data: dropped %d of %d rows with fewer than %d live responses%s",
            name,
            few,
            len(rows),
            least_live,
            ", repeats counted once" if counts["num_repeats"] else "",
        )
    if len(kept) == 0:
        long = f", {dropped} of which have prompts that are too long" if dropped else ""
        raise ValueError(
            f"{name}_dataset must have a row with at least {least_live} live responses, "
            f"got none in {len(rows)} rows{long}"
        )
    return kept


def _check_length(dataset: Any, name: str) -> None:
    if isinstance(dataset, str):
        raise ValueError(
            f"{name}_dataset must be a dataset, got the text {dataset!r}; load it, by "
            "datasets.load_dataset(...)"
        )
    if is_stream(dataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{name}_dataset must have a length, got {type(dataset).__name__}; take a part of a "
            "stream, such as list(stream.take(256)); train_dataset may be an IterableDataset"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name}_dataset must not be empty, got 0 rows")


def _tell(name: str, reader: RowReader, counts: dict[str, int], rows: int) -> None:
    """Log what was done with responses and prompts, if anything was."""
    if counts["num_repeats"]:
        repeats = "%s data: %d responses repeat another one to their prompt and count once"
        logger.info(repeats, name, counts["num_repeats"])
    if counts["num_by_rank"]:
        ranked = "%s data: %d pairs have no scores; chosen counts 1 and rejected 0"
        logger.info(ranked, name, counts["num_by_rank"])
    if counts["num_cut"]:
        logger.warning(
            "%s data: %d responses were cut to max_length or max_completion_length; "
            "their ends are not trained, and their teacher_rewards stay those of the whole",
            name,
            counts["num_cut"],
        )
    if counts["num_long"]:
        done = "are cut at their start" if reader.long_prompts == "cut" else "drop their rows"
        long = "%s data: %d of %d prompts are too long and %s"
        logger.warning(long, name, counts["num_long"], rows, done)


def is_prepared(dataset: Any) -> bool:
    """Whether :func:`prepare_dataset` made the dataset."""
    kept = FEATURES.keys() - set(COUNTS)
    return isinstance(dataset, Dataset) and set(dataset.column_names) == kept
