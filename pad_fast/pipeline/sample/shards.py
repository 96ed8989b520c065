"""Sampling in shards, so that a killed run keeps what was finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.generate import Sampler, generate
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.whole_files import Row, shard_path, write_rows

OnShard = Callable[[int, Sequence[Row], Row], None]


def shards(rows: Sequence[Row], folder: Path, size: int) -> list[tuple[int, Path, Sequence[Row]]]:
    """Index, file and rows of every shard of ``rows``."""
    return [
        (index, shard_path(folder, index), rows[start : start + size])
        for index, start in enumerate(range(0, len(rows), size))
    ]


def unfinished(rows: Sequence[Row], folder: Path, size: int) -> bool:
    """Whether a shard of ``rows`` is missing in ``folder``."""
    return any(not path.exists() for _, path, _ in shards(rows, folder, size))


def sample_shards(
    engine: Engine,
    rows: Sequence[Row],
    folder: Path,
    sampler: Sampler,
    *,
    seed: int,
    title: str,
    on_shard: OnShard | None = None,
    complete: Callable[[list[Row]], list[Row]] | None = None,
) -> None:
    """Write the shards of responses to ``rows`` that ``folder`` lacks.

    The seed of a shard depends on ``seed`` and its index alone. A run that was killed therefore
    samples the same responses as one that was not.

    Args:
        engine: the model that responds.
        rows: prompts, with their ``prompt_ids``.
        folder: where the shards are.
        sampler: how the model samples.
        seed: of all shards.
        title: of the progress bar.
        on_shard: called with index, rows and metrics of each shard before it is written.
        complete: makes the rows that are written from those that were sampled.
    """
    config = sampler.config
    todo = shards(rows, folder, config.shard_size)
    done = sum(len(part) for _, path, part in todo if path.exists()) * sampler.per_prompt
    total = len(rows) * sampler.per_prompt
    with tqdm(
        total=total, initial=done, desc=title, unit="response", disable=config.disable_tqdm
    ) as bar:
        for index, path, part in todo:
            if path.exists():
                continue
            sampled = generate(engine, part, sampler, derive_seed(seed, index), bar.update)
            if on_shard is not None:
                on_shard(index, sampled, sampling_metrics(sampled))
            write_rows(path, sampled if complete is None else complete(sampled))
