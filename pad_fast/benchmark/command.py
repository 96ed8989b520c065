"""The command ``pad-fast benchmark``: ask, check or judge, by its first word."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pad_fast.benchmark.options import AnswerOptions, CheckOptions, JudgeOptions, ModelOptions
from pad_fast.benchmark.results import print_result
from pad_fast.evaluation.benchmarks.answer_check import check_answers
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.pipeline.benchmark.harness import harness_for
from pad_fast.pipeline.benchmark.judge import Judge, ModelJudge
from pad_fast.pipeline.benchmark.judge_server import ServerJudge
from pad_fast.pipeline.benchmark.judged_files import (
    benchmark_of,
    judge_files,
    print_comparisons,
    read_matches,
)
from pad_fast.pipeline.benchmark.official_judge import OfficialJudge
from pad_fast.pipeline.benchmark.questions import load_questions
from pad_fast.pipeline.benchmark.run_benchmark import Task, run_benchmark
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.parser import Parser
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.serving.pool import Limits, Pool
from pad_fast.pipeline.serving.server_engine import ServerEngine
from pad_fast.pipeline.serving.trial import try_out
from pad_fast.pipeline.setting_groups import settings_of
from pad_fast.terminal import suggestion

USAGE = f"""usage: pad-fast benchmark NAME --model MODEL [--output_dir DIR] [...]
       pad-fast benchmark check FILE [--questions FILE] [--model NAME]
       pad-fast benchmark judge ANSWERS BASELINE --judge MODEL --output_dir DIR

NAME: {", ".join(BENCHMARKS)}.
Each of the three has a --help of its own.
"""


def benchmark(words: Sequence[str]) -> bool:
    """Do what the words after ``pad-fast benchmark`` say.

    Returns:
        False if a file that was to be checked is wrong.

    Raises:
        ValueError: the words are wrong, or what they name.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return True
    first, rest = words[0], list(words[1:])
    actions: dict[str, Callable[[list[str]], bool]] = {
        **{name: partial(_answer, name) for name in BENCHMARKS},
        "check": _check,
        "judge": _judge,
    }
    if first not in actions:
        similar = suggestion(first, actions)
        raise ValueError(f"benchmark: must be one of {', '.join(actions)}, got {first!r}{similar}")
    return actions[first](rest)


def _parsed(word: str, words: list[str], options: Any, files: Sequence[str] = ()) -> Any:
    """The options and the files in a command's words."""
    settings = settings_of(options)
    usage = " ".join([*map(str.upper, files), "[--NAME VALUE ...]"])
    parser = Parser({"of this command": settings}, f"benchmark {word}", usage)
    for name in files:
        parser.add_argument(name, metavar=name.upper(), help="Answer file.")
    found = parser.parse_known(words)
    made = options(**{setting.name: getattr(found, setting.name) for setting in settings})
    return (made, *(getattr(found, name) for name in files)) if files else made


def _answer(name: str, words: list[str]) -> bool:
    """Answer a benchmark's questions."""
    options: AnswerOptions = _parsed(name, words, AnswerOptions)
    benchmark = BENCHMARKS[name]
    root = Path(options.output_dir or f"eval/{name}/{options.name}")
    asking = options.asking(benchmark, options.seed, options.questions is not None)
    questions = load_questions(
        benchmark, options.questions, root / "questions", options.benchmark_limit
    )
    task = Task(
        asking,
        questions,
        str(options.name),
        _checkpoint("model", str(options.model), options, served=bool(options.server)),
        partial(_engine, options, options.server, options.sample_batch_tokens),
        harness_for(options.benchmark_harness, options.server),
        options.form_name(benchmark),
        options.shard_size,
        OfficialJudge(options.judge_url, options.judge_name),
        options.disable_tqdm,
    )
    print_result(run_benchmark(task, root), root)
    return True


def _check(words: list[str]) -> bool:
    """Check an answer file; False if something is wrong with it."""
    options, path = _parsed("check", words, CheckOptions, ["file"])
    file = Path(path)
    form = check_answers(file).form
    questions = None
    if options.questions is not None:
        questions = load_questions(
            benchmark_of(form), options.questions, file.parent, options.limit
        )
    found = check_answers(file, questions, options.model)
    for fault in found.faults:
        print(fault)
    asked = "" if questions is None else f" to {len(questions)} questions"
    verdict = f"{len(found.faults)} faults" if found.faults else "nothing is wrong"
    print(f"{file}: {len(found.rows)} answers{asked} in the form of {form.title}: {verdict}")
    return not found.faults


def _judge(words: list[str]) -> bool:
    """Compare two answer files."""
    options, model, baseline = _parsed("judge", words, JudgeOptions, ["answers", "baseline"])
    questions = None
    if options.questions is not None:
        form = check_answers(Path(model)).form
        questions = load_questions(
            benchmark_of(form), options.questions, Path(options.output_dir), options.limit
        )
    mine, other, matches = read_matches(Path(model), Path(baseline), questions)
    with _open_judge(options) as judge:
        print(f"{2 * len(matches):,} questions to {judge.name}, each match in both orders")
        result = judge_files(
            judge,
            (mine, other),
            matches,
            Path(options.output_dir),
            margin=options.tie_margin,
            shard_size=options.shard_size,
            quiet=options.disable_tqdm,
        )
    print_comparisons(result)
    return True


@contextlib.contextmanager
def _open_judge(options: JudgeOptions) -> Iterator[Judge]:
    name = str(options.judge)
    if options.judge_server:
        yield ServerJudge(options.judge_server, name, patience=options.server_patience)
        return
    checkpoint = _checkpoint("judge", name, options)
    with _engine(options, (), options.score_batch_tokens, checkpoint) as engine:
        yield ModelJudge(engine)


def _checkpoint(role: str, path: str, options: ModelOptions, *, served: bool = False) -> Checkpoint:
    return Checkpoint(
        role,
        path,
        options.revision,
        options.dtype,
        options.attn_implementation,
        _run_config(path, options, 1).chat_template_kwargs,  # type: ignore[arg-type]
        served=served,
    )


@contextlib.contextmanager
def _engine(
    options: ModelOptions, servers: Sequence[str], batch_tokens: int, checkpoint: Checkpoint
) -> Iterator[Engine]:
    """What runs a model: servers if there are any, else this process."""
    engine: Engine
    if servers:
        urls = [url.rstrip("/").removesuffix("/v1") for url in servers]
        pool = Pool(urls, Limits(patience=options.server_patience))
        engine = ServerEngine(checkpoint, "mean", pool)
        try_out(engine)
    else:
        config = _run_config(checkpoint.path, options, batch_tokens)
        engine = TransformersEngine(checkpoint, ModelScores(config, "mean"))
    try:
        yield engine
    finally:
        engine.close()


def _run_config(path: str, options: ModelOptions, batch_tokens: int) -> RunConfig:
    """The settings of a run as far as one model's sampling and scoring read them."""
    return RunConfig(
        student=path,
        teacher=path,
        prompts="none",
        output_dir="none",
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        chat_template_kwargs=options.chat_template_kwargs,
        disable_tqdm=options.disable_tqdm,
        sample_batch_tokens=batch_tokens,
        score_batch_tokens=batch_tokens,
    )
