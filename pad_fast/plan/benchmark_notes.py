"""What a run's benchmarks ask, in a line for each: their time is not planned."""

from __future__ import annotations

from pathlib import Path

from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.evaluate.benchmarks import NO_JUDGE


def benchmark_notes(config: RunConfig) -> list[str]:
    """Questions, turns and the most new tokens of each benchmark, over all models.

    Questions that the run would fetch are not counted: a plan needs no network.

    Raises:
        ValueError: a file of questions is wrong.
    """
    # The base student, one of each round, the teacher, and the baseline.
    models = 1 + config.rounds + bool(config.teacher) + (config.baseline == "seqkd")
    return [
        f"{name} is not in these times: {_asked(BENCHMARKS[name], config, models)}"
        for name in config.benchmarks
    ]


def _asked(benchmark: Benchmark, config: RunConfig, models: int) -> str:
    files = config.benchmark_questions or {}
    assert isinstance(files, dict)
    if benchmark.name not in files:
        return f"{models} models answer it, and its questions are fetched when the run begins"
    questions = benchmark.questions(Path(files[benchmark.name]))[: config.benchmark_limit]
    turns = sum(len(question.turns) for question in questions)
    longest = config.benchmark_max_new_tokens or benchmark.max_new_tokens
    found = (
        f"{models} models answer {len(questions):,} questions in {turns:,} turns of at most "
        f"{longest:,} tokens, {models * turns * longest:,} in all"
    )
    if benchmark.judged and config.benchmark_judge != NO_JUDGE:
        found += f"; the judge compares {models - 1} of them with the base student"
    return found
