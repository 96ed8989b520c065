"""Benchmarks of the run's models: which, who judges, and how they are asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.pipeline.benchmark.config import BenchmarkConfig
from pad_fast.pipeline.option import json_object, option


@dataclass
class BenchmarkOptions(BenchmarkConfig):
    """Benchmarks of the run's models: which, who judges, and how they are asked."""

    benchmarks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Benchmarks of the base student, the teacher and the student of each round: "
            + ", ".join(BENCHMARKS)
            + ". They may be added to a run that is finished."
        },
    )
    benchmark_questions: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object from a benchmark to the file of its questions. Default: fetch "
            "them from where they are kept."
        },
    )
    benchmark_judge: str = option(
        "teacher",
        "Who compares each model's answers with the base student's: teacher, none, or a folder or "
        "hub name of a causal LM. The numbers are not comparable with published ones.",
    )

    def check_benchmarks(self, has_teacher: bool) -> None:
        """Raise ValueError for benchmarks that are not known, or that nobody judges."""
        BenchmarkConfig.__post_init__(self)
        self.benchmark_questions = json_object("benchmark_questions", self.benchmark_questions)
        for setting in ("benchmarks", "benchmark_questions"):
            for name in getattr(self, setting) or ():
                if name not in BENCHMARKS:
                    known = ", ".join(BENCHMARKS)
                    raise ValueError(f"{setting}: must be among {known}, got {name!r}")
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"benchmarks: must name each once, got {self.benchmarks}")
        judged = [name for name in self.benchmarks if BENCHMARKS[name].judged]
        if judged and self.benchmark_judge == "teacher" and not has_teacher:
            raise ValueError(
                f"benchmark_judge: the teacher is to judge {judged[0]}, and none is given; name a "
                "judge, or set it to none"
            )
