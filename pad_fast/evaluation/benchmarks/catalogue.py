"""The one list of benchmarks, and the one list of forms that their answer files have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pad_fast.evaluation.benchmarks import alpaca_eval, arena_hard, gsm8k, mt_bench
from pad_fast.evaluation.benchmarks.records import Answer, Question, Row
from pad_fast.evaluation.benchmarks.shapes import Object


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer file.

    Args:
        title: its name in messages.
        shape: the shape of a row.
        key: the field that says which question a row answers.
        model: the field with the model's name.
        text: makes the file's content of answers and the model's name.
        turns: the texts that a row answers with.
        array: whether the file is one JSON array, and not JSON lines.
        ordered: whether rows are sorted by ``key``; those of other forms follow the questions.
        named: whether the official tool takes the model's name from the file's.
    """

    title: str
    shape: Object
    key: str
    model: str
    text: Callable[[Sequence[Answer], str], str]
    turns: Callable[[Row], tuple[str, ...]]
    array: bool = False
    ordered: bool = False
    named: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Args:
        name: its word on the command line.
        title: its name in tables.
        source: where its questions are.
        questions: reads them from a file.
        forms: the forms of its answer file by name, the first one by default.
        folder: where the official tool looks for answer files; "" where it is given their path.
        max_new_tokens: the longest answer by the benchmark's own rule, in tokens.
        temperature: of a question, by the benchmark's own rule.
        judged: whether a judge decides; otherwise answers are right or wrong.
    """

    name: str
    title: str
    source: str
    questions: Callable[[Path], list[Question]]
    forms: dict[str, AnswerForm]
    folder: str
    max_new_tokens: int
    temperature: Callable[[Question], float]
    judged: bool = True

    def form(self, name: str | None) -> AnswerForm:
        """A form by its name, the usual one without a name.

        Raises:
            ValueError: there is no such form.
        """
        if name is None:
            return next(iter(self.forms.values()))
        if name not in self.forms:
            known = ", ".join(self.forms)
            raise ValueError(f"form: must be one of {known} for {self.name}, got {name!r}")
        return self.forms[name]


GSM8K = AnswerForm(
    "GSM8K", gsm8k.SHAPE, "question", "generator", gsm8k.answer_text, gsm8k.read_turns
)
ALPACA_EVAL = AnswerForm(
    "AlpacaEval",
    alpaca_eval.SHAPE,
    "instruction",
    "generator",
    alpaca_eval.answer_text,
    alpaca_eval.read_turns,
    array=True,
)
ARENA_HARD = AnswerForm(
    "Arena-Hard",
    arena_hard.SHAPE,
    "uid",
    "model",
    arena_hard.answer_text,
    arena_hard.read_turns,
    ordered=True,
    named=True,
)
ARENA_HARD_LEGACY = AnswerForm(
    "Arena-Hard before April 2025",
    arena_hard.LEGACY_SHAPE,
    "question_id",
    "model_id",
    arena_hard.legacy_text,
    arena_hard.read_turns,
    ordered=True,
    named=True,
)
MT_BENCH = AnswerForm(
    "MT-Bench",
    mt_bench.SHAPE,
    "question_id",
    "model_id",
    mt_bench.answer_text,
    mt_bench.read_turns,
    ordered=True,
    named=True,
)

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gsm8k",
            "GSM8K",
            gsm8k.SOURCE,
            gsm8k.read_questions,
            {"jsonl": GSM8K},
            "",
            256,
            lambda question: 0.0,
            judged=False,
        ),
        # AlpacaEval leaves sampling to each model's own configuration; most of them take 0.7.
        Benchmark(
            "alpaca_eval",
            "AlpacaEval 2.0",
            alpaca_eval.SOURCE,
            alpaca_eval.read_questions,
            {"json": ALPACA_EVAL},
            "",
            2048,
            lambda question: 0.7,
        ),
        Benchmark(
            "arena_hard",
            "Arena-Hard",
            arena_hard.SOURCE,
            arena_hard.read_questions,
            {arena_hard.CURRENT: ARENA_HARD, arena_hard.LEGACY: ARENA_HARD_LEGACY},
            "data/{version}/model_answer",
            4096,
            lambda question: 0.0,
        ),
        Benchmark(
            "mt_bench",
            "MT-Bench",
            mt_bench.SOURCE,
            mt_bench.read_questions,
            {"jsonl": MT_BENCH},
            "data/mt_bench/model_answer",
            1024,
            mt_bench.temperature,
        ),
    )
}


def recognised(row: Row, array: bool) -> AnswerForm:
    """The form that a row of an answer file is of.

    Raises:
        ValueError: it is of none.
    """
    if "uid" in row:
        return ARENA_HARD
    if "question_id" in row:
        choices = row.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        turns = choice.get("turns") if isinstance(choice, dict) else None
        legacy = isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict)
        return ARENA_HARD_LEGACY if legacy else MT_BENCH
    if "instruction" in row:
        return ALPACA_EVAL
    if "question" in row and "output" in row:
        return GSM8K
    what = "an array" if array else "lines"
    raise ValueError(
        f"is no answer file: {what} with the fields {', '.join(row)}; answers have uid "
        "(Arena-Hard), question_id (MT-Bench), or instruction and output (AlpacaEval)"
    )
