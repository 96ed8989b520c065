"""The benchmarks of a run's models: base student, teacher, and the student of each round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.evaluation.benchmarks.records import Question
from pad_fast.evaluation.benchmarks.run_table import FOLDER, JUDGED, RESULT
from pad_fast.evaluation.model_names import BASE
from pad_fast.files.own_files import read_json
from pad_fast.pipeline.benchmark.asking import Asking
from pad_fast.pipeline.benchmark.harness import harness_for
from pad_fast.pipeline.benchmark.judge import ModelJudge
from pad_fast.pipeline.benchmark.judged_files import judge_files, read_matches
from pad_fast.pipeline.benchmark.questions import load_questions
from pad_fast.pipeline.benchmark.run_benchmark import Task, run_benchmark
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.evaluate.heldout import Subject
from pad_fast.pipeline.run import RunContext

TEACHER_JUDGES, NO_JUDGE = "teacher", "none"


class RunBenchmarks:
    """The benchmarks that a run is configured to do.

    Args:
        run: the run.
    """

    def __init__(self, run: RunContext) -> None:
        self.run = run

    @cached_property
    def asked(self) -> dict[str, tuple[Asking, list[Question]]]:
        """How each benchmark is asked, and its questions, by its name.

        Raises:
            ValueError: a file is wrong, or cannot be fetched.
        """
        config, found = self.run.config, {}
        files = config.benchmark_questions or {}
        assert isinstance(files, dict)
        for name in config.benchmarks:
            asking = config.asking(BENCHMARKS[name], config.seed, name in files)
            cache = self.run.folder.root / FOLDER / ".questions"
            found[name] = (
                asking,
                load_questions(BENCHMARKS[name], files.get(name), cache, config.benchmark_limit),
            )
        return found

    def missing(self, subjects: Sequence[Subject]) -> list[Path]:
        """The results that are not there yet."""
        return [path for path in self._results(subjects) if not path.exists()]

    def do(self, subjects: Sequence[Subject]) -> None:
        """Write the results that are missing. The base student's have to be there, or among them.

        Answers of all models come first, so that the judge is loaded once.
        """
        if not self.missing(subjects):
            return
        for subject in subjects:
            for name, (asking, questions) in self.asked.items():
                if not (self._folder(subject.name, name) / RESULT).exists():
                    self._answer(subject, asking, questions)
            subject.checkpoint.free()
        self._judge(subjects)

    def _results(self, subjects: Sequence[Subject]) -> Iterator[Path]:
        for subject in subjects:
            for name in self.run.config.benchmarks:
                folder = self._folder(subject.name, name)
                yield folder / RESULT
                if self._is_judged(subject, name):
                    yield folder / JUDGED / RESULT

    def _is_judged(self, subject: Subject, name: str) -> bool:
        """Whether a judge compares the model's answers with the base student's."""
        judge = self.run.config.benchmark_judge
        return judge != NO_JUDGE and BENCHMARKS[name].judged and not subject.is_base

    def _folder(self, model: str, name: str) -> Path:
        return self.run.folder.root / FOLDER / model / name

    def _answer(self, subject: Subject, asking: Asking, questions: Sequence[Question]) -> None:
        config, benchmark = self.run.config, asking.benchmark
        task = Task(
            asking,
            questions,
            subject.name,
            subject.checkpoint,
            self.run.engine,
            harness_for(config.benchmark_harness, ()),
            config.form_name(benchmark),
            config.shard_size,
            quiet=config.disable_tqdm,
        )
        run_benchmark(task, self._folder(subject.name, benchmark.name))

    def _judge(self, subjects: Sequence[Subject]) -> None:
        todo = [
            (subject.name, name)
            for subject in subjects
            for name in self.run.config.benchmarks
            if self._is_judged(subject, name)
            and not (self._folder(subject.name, name) / JUDGED / RESULT).exists()
        ]
        if not todo:
            return
        checkpoint, label = self._judge_model()
        with self.run.engine(checkpoint) as engine:
            judge = ModelJudge(engine, label)
            for model, name in todo:
                mine, base, matches = read_matches(
                    self._answers(model, name), self._answers(BASE, name), self.asked[name][1]
                )
                judge_files(
                    judge,
                    (mine, base),
                    matches,
                    self._folder(model, name) / JUDGED,
                    shard_size=self.run.config.shard_size,
                    quiet=self.run.config.disable_tqdm,
                )

    def _answers(self, model: str, name: str) -> Path:
        folder = self._folder(model, name)
        return folder / str(read_json(folder / RESULT)["answers"])

    def _judge_model(self) -> tuple[Checkpoint, str]:
        """The judge, and what tables call it."""
        config = self.run.config
        if config.benchmark_judge == TEACHER_JUDGES:
            return self.run.teacher, f"{config.teacher} (the teacher)"
        assert not isinstance(config.chat_template_kwargs, str)
        judge = Checkpoint(
            "benchmark_judge",
            config.benchmark_judge,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
            template_kwargs=config.chat_template_kwargs,
            now=self.run.started,
        )
        return judge, config.benchmark_judge
