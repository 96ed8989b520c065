"""One benchmark of one model: answers, their file, their scores, and the official judge's files."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pad_fast.evaluation.benchmarks import gsm8k
from pad_fast.evaluation.benchmarks.answer_check import check_answers
from pad_fast.evaluation.benchmarks.catalogue import Benchmark
from pad_fast.evaluation.benchmarks.gsm8k import Share
from pad_fast.evaluation.benchmarks.records import Answer, Question
from pad_fast.files.own_files import read_json
from pad_fast.files.stored_rows import Row
from pad_fast.files.writing import replacing
from pad_fast.pipeline.benchmark.answering import Answering, answers_of
from pad_fast.pipeline.benchmark.asking import Asking
from pad_fast.pipeline.benchmark.cost import duration, longest_seconds, tokens_line
from pad_fast.pipeline.benchmark.folder import MANIFEST, BenchmarkFolder, questions_hash
from pad_fast.pipeline.benchmark.lm_eval_harness import run_lm_eval
from pad_fast.pipeline.benchmark.official_judge import OfficialJudge, write_official_judge
from pad_fast.pipeline.benchmark.token_counts import token_counter
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Engine

Say = Callable[[str], object]
OpenEngine = Callable[[Checkpoint], AbstractContextManager[Engine]]


@dataclass(frozen=True)
class Task:
    """A benchmark for one model.

    Args:
        asking: how the questions are asked.
        questions: what is asked.
        model: the name in the answer file.
        checkpoint: the model.
        engine: opens what runs it.
        harness: "lm_eval" or "own", for GSM8K.
        form: the name of the answer file's form.
        shard_size: questions in a shard.
        judge: for the official tools' configuration.
        quiet: whether there is no progress bar.
    """

    asking: Asking
    questions: Sequence[Question]
    model: str
    checkpoint: Checkpoint
    engine: OpenEngine
    harness: str
    form: str
    shard_size: int = 16
    judge: OfficialJudge = field(default_factory=OfficialJudge)
    quiet: bool = False

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark."""
        return self.asking.benchmark

    @property
    def scored_by_lm_eval(self) -> bool:
        """Whether lm-eval asks and scores."""
        return not self.benchmark.judged and self.harness == "lm_eval"

    def made_with(self, engine: str) -> Row:
        """What the answers depend on."""
        return {
            "benchmark": self.benchmark.name,
            "model": self.model,
            "checkpoint": self.checkpoint.fingerprint(),
            "dtype": self.checkpoint.dtype,
            "chat_template_kwargs": self.checkpoint.template_kwargs,
            "engine": engine,
            "questions": {
                "count": len(self.questions),
                "sha256": questions_hash(self.questions),
            },
            "shard_size": self.shard_size,
            "form": self.form,
            **self.asking.record(),
        }

    def answer_file(self, root: Path) -> Path:
        """The path of the answer file below the benchmark's folder."""
        form = self.benchmark.form(self.form)
        name = f"{self.model}.{'json' if form.array else 'jsonl'}"
        legacy = self.form == "legacy"
        old = legacy or any(q.category == "arena-hard-v0.1" for q in self.questions)
        version = "arena-hard-v0.1" if old else "arena-hard-v2.0"
        return root / self.benchmark.folder.format(version=version) / name


def run_benchmark(task: Task, root: Path, say: Say = print) -> Row:
    """Answer the questions that have no answer yet, and write everything that follows from it.

    Args:
        task: what is done.
        root: the benchmark's folder.
        say: is given lines for the user.

    Returns:
        The result, as ``result.json`` holds it.

    Raises:
        ValueError: the folder holds answers that were made with something else.
    """
    folder = BenchmarkFolder(root)
    with folder.locked():
        task = replace(task, checkpoint=_at_first_start(task.checkpoint, root))
        result = _by_lm_eval(task, folder, say) if task.scored_by_lm_eval else None
        if result is None:
            with task.engine(task.checkpoint) as engine:
                result = _by_engine(task, folder, engine, say)
        folder.write_result(result)
    return result


def _at_first_start(checkpoint: Checkpoint, root: Path) -> Checkpoint:
    """The checkpoint with the time of the first start, which a chat template may write."""
    path = root / MANIFEST
    if path.exists() and (started := read_json(path).get("started")):
        now = datetime.datetime.fromisoformat(started)
    else:
        now = datetime.datetime.now(datetime.UTC)
    return checkpoint if checkpoint.now else replace(checkpoint, now=now)


def _begin(task: Task, folder: BenchmarkFolder, engine: str) -> None:
    started = task.checkpoint.now
    assert started is not None
    folder.begin({"started": started.isoformat(), **task.made_with(engine)})


def _by_engine(task: Task, folder: BenchmarkFolder, engine: Engine, say: Say) -> Row:
    """Answers by an engine, in shards."""
    _begin(task, folder, engine.identity)
    answering = Answering(engine, task.asking, folder.shards, task.shard_size, task.quiet)
    if missing := answering.missing(task.questions):
        line = tokens_line(task.asking, missing, answering.prompts(missing))
        seconds = longest_seconds(answering, missing)
        told = "" if seconds is None else f"; by a trial {duration(seconds)} if all are used"
        say(line + told)
    rows = answering.answer(task.questions, f"{task.benchmark.name} {task.model}")
    count, counted_in = token_counter(task.checkpoint.tokenizer) if _counts(task) else (len, "")
    answers = answers_of(task.asking, task.questions, rows, count)
    result = {
        **_write_answers(task, folder.root, answers),
        "engine": engine.identity,
        "seconds": sum(row["seconds"] for row in rows),
        "new_tokens": sum(sum(row["response_tokens"]) for row in rows),
        "cut": sum(row["finish_reasons"].count("length") for row in rows),
    }
    if counted_in:
        result["token_len_in"] = counted_in
    if not task.benchmark.judged:
        shares = gsm8k.shares([(a.turns[0], a.question.solution) for a in answers])
        errors = {name: share.standard_error for name, share in shares.items()}
        result |= _gsm8k_result(task, shares, errors, "pad-fast, as lm-eval's task gsm8k 3.0")
    return result


def _by_lm_eval(task: Task, folder: BenchmarkFolder, say: Say) -> Row:
    """Answers and scores by lm-eval, which keeps its responses one by one."""
    _begin(task, folder, "lm_eval")
    chat = task.checkpoint.chat
    prompts = [chat.prompt_ids(task.asking.messages(q, ())) for q in task.questions]
    say(f"{tokens_line(task.asking, task.questions, prompts)}; by lm-eval itself")
    start = time.perf_counter()
    found = run_lm_eval(task.checkpoint, task.asking, task.questions, folder.root / "lm_eval")
    return {
        **_write_answers(task, folder.root, found.answers),
        "engine": "lm_eval",
        "seconds": time.perf_counter() - start,
        **_gsm8k_result(task, found.shares, found.errors, f"lm-eval {found.version}"),
    }


def _counts(task: Task) -> bool:
    return task.benchmark.name == "arena_hard"


def _write_answers(task: Task, root: Path, answers: Sequence[Answer]) -> Row:
    """Write the answer file, check it, and write the official judge's files beside it."""
    path, form = task.answer_file(root), task.benchmark.form(task.form)
    with replacing(path) as temporary:
        temporary.write_text(form.text(answers, task.model), encoding="utf-8")
    if faults := check_answers(path, task.questions, task.model).faults:
        raise RuntimeError(f"{path} was written and is wrong: {faults[0]}")
    script = write_official_judge(root, task.benchmark.name, task.judge, task.model, path)
    return {
        "benchmark": task.benchmark.name,
        "model": task.model,
        "answers": str(path.relative_to(root)),
        "questions": len(task.questions),
        **({"official_judge": script.name} if script else {}),
    }


def _gsm8k_result(
    task: Task, shares: dict[str, Share], errors: dict[str, float], scored_by: str
) -> Row:
    return {
        "scored_by": scored_by,
        "shots": len(task.asking.shots),
        "chat_template": True,
        "scores": {
            name: {
                "right": share.right,
                "count": share.count,
                "value": share.value,
                "stderr": errors[name] if share.count > 1 else None,
                "low": share.interval[0],
                "high": share.interval[1],
            }
            for name, share in shares.items()
        },
    }
