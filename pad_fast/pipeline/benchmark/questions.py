"""A benchmark's questions: from a file, or from where the benchmark keeps them."""

from __future__ import annotations

from pathlib import Path

from pad_fast.evaluation.benchmarks import gsm8k
from pad_fast.evaluation.benchmarks.catalogue import Benchmark
from pad_fast.evaluation.benchmarks.records import Question
from pad_fast.files.system_errors import first_line
from pad_fast.files.writing import replacing

SECONDS = 60.0


def load_questions(
    benchmark: Benchmark, path: str | None, cache: Path, limit: int | None = None
) -> list[Question]:
    """The questions of a benchmark.

    Args:
        benchmark: which one.
        path: a file of them; None fetches the benchmark's own.
        cache: where fetched files are kept.
        limit: the first so many; None takes all.

    Raises:
        ValueError: the file is wrong, or it cannot be fetched; the message says what to do.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: must be 1 or more, got {limit}")
    if path is not None:
        found = benchmark.questions(Path(path))
    elif not benchmark.judged:
        found = hub_problems("test", benchmark)
    else:
        found = benchmark.questions(_fetched(benchmark, cache))
    return found[:limit]


def load_shots(path: str | None, count: int, benchmark: Benchmark) -> list[Question]:
    """The first ``count`` solved problems of a file, or of the hub's training split.

    Raises:
        ValueError: there are fewer.
    """
    if count == 0:
        return []
    found = hub_problems("train", benchmark) if path is None else benchmark.questions(Path(path))
    if len(found) < count:
        raise ValueError(f"shots: {path or 'the training split'} holds {len(found)}, got {count}")
    return found[:count]


def hub_problems(split: str, benchmark: Benchmark) -> list[Question]:
    """A split of GSM8K from the hub."""
    from datasets import load_dataset

    name, subset = gsm8k.HUB
    try:
        rows = load_dataset(name, subset, split=split)
    except Exception as error:  # datasets wraps whatever its network library raises
        raise _not_fetched(benchmark, f"{name}, {split}", error) from None
    return gsm8k.from_rows([(f"{name}, {split}, row {n}", row) for n, row in enumerate(rows)])


def _fetched(benchmark: Benchmark, cache: Path) -> Path:
    import httpx

    path = cache / f"{benchmark.name}_{Path(benchmark.source).name}"
    if path.exists():
        return path
    try:
        response = httpx.get(benchmark.source, follow_redirects=True, timeout=SECONDS)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise _not_fetched(benchmark, benchmark.source, error) from None
    with replacing(path) as temporary:
        temporary.write_bytes(response.content)
    return path


def _not_fetched(benchmark: Benchmark, where: str, error: Exception) -> ValueError:
    return ValueError(
        f"questions: {where} could not be fetched ({first_line(error)}); give the file of "
        f"{benchmark.title}'s questions"
    )
