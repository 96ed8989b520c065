"""The settings of benchmarks, which a run's YAML and the command ``pad-fast benchmark`` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad_fast.evaluation.benchmarks import gsm8k
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark
from pad_fast.pipeline.benchmark.asking import Asking
from pad_fast.pipeline.benchmark.harness import HARNESSES, harness_for
from pad_fast.pipeline.benchmark.questions import load_shots
from pad_fast.pipeline.number_rules import BENCHMARK_RULES
from pad_fast.pipeline.option import option
from pad_fast.training.number_rules import problems


@dataclass
class BenchmarkConfig:
    """How a model is asked the questions of a benchmark.

    Raises:
        ValueError: a setting is out of its range.
    """

    benchmark_limit: int | None = option(
        None, "The first so many questions of a benchmark. Default: all of them."
    )
    benchmark_max_new_tokens: int | None = option(
        None,
        "Longest answer to a benchmark's question, in tokens. Default: the benchmark's own, "
        + ", ".join(f"{b.max_new_tokens} ({name})" for name, b in BENCHMARKS.items())
        + ".",
    )
    benchmark_temperature: float | None = option(
        None,
        "Temperature of a benchmark's answers; 0 is greedy. Default: the benchmark's own rule, "
        "greedy for gsm8k and arena_hard, 0.7 for alpaca_eval, by category for mt_bench.",
    )
    benchmark_shots: int | None = option(
        None, f"Solved problems before each problem of gsm8k. Default: {gsm8k.SHOTS}."
    )
    benchmark_shots_file: str | None = option(
        None,
        "File of solved problems, with question and answer, of which the first are taken. "
        "Default: the hub's training split.",
    )
    benchmark_suffix: str = option("", "Text behind each question, such as an instruction.")
    benchmark_system_prompt: str = option(
        "", "System prompt for benchmarks. Default: what the chat template does without one."
    )
    benchmark_strip_thinking: bool = option(
        False, "Remove blocks of thinking, up to </think>, from answers; the number is printed."
    )
    benchmark_harness: str = option(
        "auto",
        "Who asks and scores gsm8k: lm-eval itself (lm_eval), our own module, which agrees with it "
        "(own), or the first of them that is installed and can (auto).",
        HARNESSES,
    )
    benchmark_form: str | None = option(
        None,
        "Form of the answers to arena_hard: v2, which v0.1 has too since April 2025, or legacy. "
        "Default: v2.",
    )

    def __post_init__(self) -> None:
        for name, problem in problems(BENCHMARK_RULES, self):
            raise ValueError(f"{name}: {problem}")
        if self.benchmark_shots_file and not Path(self.benchmark_shots_file).is_file():
            raise ValueError(f"benchmark_shots_file: no such file, {self.benchmark_shots_file}")
        forms = [name for benchmark in BENCHMARKS.values() for name in benchmark.forms]
        if self.benchmark_form is not None and self.benchmark_form not in forms:
            raise ValueError(
                f"benchmark_form: must be one of {', '.join(dict.fromkeys(forms))}, "
                f"got {self.benchmark_form!r}"
            )
        harness_for(self.benchmark_harness, ())

    def asking(self, benchmark: Benchmark, seed: int, questions_given: bool) -> Asking:
        """How the questions of one benchmark are asked.

        Args:
            benchmark: which one.
            seed: of the samples.
            questions_given: whether the questions come from a file of the user's.

        Raises:
            ValueError: examples are wanted, and it is not said where they come from.
        """
        count = self.benchmark_shots
        if benchmark.judged:
            count = 0
        elif count is None:
            count = gsm8k.SHOTS
        if count and questions_given and self.benchmark_shots_file is None:
            raise ValueError(
                f"benchmark_shots_file: needed for the {count} solved problems before each of "
                f"{benchmark.name}'s, since its questions come from a file; give one, or set "
                "benchmark_shots: 0"
            )
        return Asking(
            benchmark,
            self.benchmark_max_new_tokens,
            self.benchmark_temperature,
            load_shots(self.benchmark_shots_file, count, benchmark),
            self.benchmark_suffix,
            self.benchmark_system_prompt,
            self.benchmark_strip_thinking,
            seed,
            not questions_given and self.benchmark_shots_file is None,
        )

    def form_name(self, benchmark: Benchmark) -> str:
        """The name of the form of a benchmark's answers."""
        form = self.benchmark_form
        return form if form in benchmark.forms else next(iter(benchmark.forms))
