"""Sampling in shards, so that a killed run keeps what was finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pad_fast.files.own_files import count_items
from pad_fast.files.stored_rows import Row, Rows
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.parquet_rows import shard_index, shard_path, shard_paths, write_rows
from pad_fast.pipeline.ranks import ALONE, Ranks
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.generate import Sampler, generate
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.shared_bar import SharedBar

OnShard = Callable[[int, Sequence[Row], Row], None]


def shards(rows: Rows, folder: Path, size: int) -> list[tuple[int, Path, Rows]]:
    """Index, file and rows of every shard of ``rows``, which are not read yet."""
    return [
        (index, path, rows[index * size : (index + 1) * size])
        for index, path in enumerate(shard_files(len(rows), folder, size))
    ]


def shard_files(count: int, folder: Path, size: int) -> Iterator[Path]:
    """The file of every shard of ``count`` rows."""
    return (shard_path(folder, index) for index in range(-(-count // size)))


def unfinished(rows: Rows, folder: Path, size: int) -> bool:
    """Whether a shard of ``rows`` is missing in ``folder``."""
    return any(not path.exists() for path in shard_files(len(rows), folder, size))


def without_result(sources: Path, results: Path, ranks: Ranks) -> list[Path]:
    """The shards in a folder that have no shard of the same name in another, as rank 0 sees it."""
    found = [path.name for path in shard_paths(sources) if not (results / path.name).exists()]
    return [sources / name for name in ranks.agree(found)]


def count_responses(shards: Sequence[Path]) -> int:
    """The number of responses in shards of sampled rows."""
    return sum(count_items(shard, "finish_reasons") for shard in shards)


def keep_shard(path: Path, rows: Sequence[Row], metrics: Row, on_shard: OnShard | None) -> None:
    """Write a shard with its metrics, after ``on_shard`` has seen them."""
    if on_shard is not None:
        on_shard(shard_index(path), rows, metrics)
    write_rows(path, rows, metrics)


def sample_shards(
    engine: Engine,
    rows: Rows,
    folder: Path,
    sampler: Sampler,
    *,
    seed: int,
    title: str,
    on_shard: OnShard | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Write the shards of responses to ``rows`` that ``folder`` lacks, on all ranks together.

    The seed of a shard depends on ``seed`` and its index alone. A run that was killed therefore
    samples the same responses as one that was not, and so do any number of ranks.

    Args:
        engine: the model that responds.
        rows: prompts, with their ``prompt_ids``.
        folder: where the shards are.
        sampler: how the model samples.
        seed: of all shards.
        title: of the progress bar.
        on_shard: called with index, rows and metrics of each shard that this rank samples, before
            it is written.
        ranks: those that sample.
    """
    config, every = sampler.config, shards(rows, folder, sampler.config.shard_size)
    missing = set(ranks.agree([index for index, path, _ in every if not path.exists()]))
    done = sum(len(part) for index, _, part in every if index not in missing)
    total = len(rows) * sampler.per_prompt
    with (
        measured(title, "response", ranks) as work,
        SharedBar(
            ranks, total, title, "response", done * sampler.per_prompt, quiet=config.disable_tqdm
        ) as bar,
    ):
        for index, path, part in ranks.share([shard for shard in every if shard[0] in missing]):
            rows_of_shard, own_seed = list(part), derive_seed(seed, index)
            sampled = generate(engine, rows_of_shard, sampler, own_seed, bar.update, bar.add_tokens)
            metrics = sampling_metrics(sampled)
            if on_shard is not None:
                on_shard(index, sampled, metrics)
            if sampler.complete is not None:
                sampled = sampler.complete(sampled)
            write_rows(path, sampled, metrics)
            tokens = sum(len(ids) for row in sampled for ids in row["completion_ids"])
            work.add(len(part) * sampler.per_prompt, tokens)
