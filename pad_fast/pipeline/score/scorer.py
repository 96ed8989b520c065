"""The teacher's rewards of sampled responses, calibrated by multiple choice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pad_fast.evaluation.choice import ChoiceEffect, choice_effect
from pad_fast.files.own_files import count_rows
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.calibration import log_choices
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.ranks import ALONE, Ranks
from pad_fast.pipeline.sample.engines import Engine, Progress
from pad_fast.pipeline.sample.shards import count_responses, keep_shard, without_result
from pad_fast.pipeline.score.asked_questions import Quiz, configured_questions, make_quiz
from pad_fast.pipeline.score.asked_teacher import AskedTeacher
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.metrics import choice_metrics, reward_metrics
from pad_fast.pipeline.score.teacher_rewards import teacher_rewards, uncalibrated_rewards
from pad_fast.pipeline.score.teacher_view import TeacherView, teacher_view
from pad_fast.pipeline.shared_bar import SharedBar

logger = logging.getLogger("pad_fast")

OnShard = Callable[[int, Sequence[Row], Row], None]
TEACHER_COLUMNS = (
    "teacher_logps",
    "teacher_num_tokens",
    "teacher_choice_probs",
    "teacher_rewards",
    "scored_by",
)


@dataclass(frozen=True)
class Asked:
    """A row with what the teacher answered about it.

    Args:
        row: as sampling writes it.
        view: as the teacher reads it.
        logps: log-probabilities of the readable responses, in nats.
        quiz: the questions about them.
        answers: to each question, the log-probabilities of all letters' tokens.
    """

    row: Row
    view: TeacherView
    logps: list[float]
    quiz: Quiz
    answers: list[list[float]]


class Scorer:
    """Adds the teacher's columns to sampled rows.

    Args:
        teacher: the teacher.
        student: the base student, whose token ids the rows hold.
        config: the run's settings.
        engine: the teacher as it is asked.
        cache: holds what the teacher was asked before.
        ranks: those that score.
    """

    def __init__(
        self,
        teacher: Checkpoint,
        student: Checkpoint,
        config: RunConfig,
        engine: Engine,
        cache: ScoreCache,
        ranks: Ranks = ALONE,
    ) -> None:
        self.teacher, self.config, self.engine, self.ranks = teacher, config, engine, ranks
        self.teacher_numbers = AskedTeacher(engine, cache, config.reward_temperature)
        self.reuse_ids = teacher.same_tokenizer(student)

    def score_shards(
        self,
        samples: Path,
        folder: Path,
        num_generations: int,
        *,
        title: str,
        on_shard: OnShard | None = None,
    ) -> None:
        """Write the shards of ``samples`` that ``folder`` lacks, on all ranks together.

        All log-probabilities come first and all questions after them.

        Args:
            samples: folder of sampled shards.
            folder: where the scored shards are.
            num_generations: the most responses in a row, by which questions are counted.
            title: of the two progress bars.
            on_shard: called with index, rows and metrics of each shard that this rank scores,
                before it is written.
        """
        todo = without_result(samples, folder, self.ranks)
        rows = sum(count_rows(source) for source in todo)
        quiet = self.config.disable_tqdm or not todo
        name, total = f"{title}: score", count_responses(todo)
        with (
            measured(name, "response", self.ranks) as work,
            SharedBar(self.ranks, total, name, "response", quiet=quiet) as bar,
        ):
            for source in self.ranks.share(todo):
                views = [self.view(row) for row in read_rows(source)]
                self.teacher_numbers.logps(views, bar.update)
                responses = [ids for view in views for ids in view.responses]
                bar.add_tokens(sum(map(len, responses)))
                work.add(len(responses), sum(map(len, responses)))
        per_row, unasked = len(configured_questions(self.config, num_generations)), 0
        name, quiet = f"{title}: calibrate", quiet or not self.config.asks
        with (
            measured(name, "question", self.ranks) as work,
            SharedBar(self.ranks, rows * per_row, name, "question", quiet=quiet) as bar,
        ):
            for source in self.ranks.share(todo):
                scored, metrics, asked = self._scored_shard(read_rows(source), per_row, bar.update)
                unasked += metrics.get("mcq/too_long", 0)
                keep_shard(folder / source.name, scored, metrics, on_shard)
                work.add(*asked)
        if unasked := sum(self.ranks.gather(unasked)):
            self._warn_of_unasked(title, unasked, rows)

    def _warn_of_unasked(self, title: str, unasked: int, rows: int) -> None:
        if self.ranks.is_main:
            logger.warning(
                "%s: %d of %d prompts keep uncalibrated rewards, as a question about them is "
                "longer than the teacher's window of %d tokens",
                title,
                unasked,
                rows,
                self.teacher.window,
            )

    def view(self, row: Row) -> TeacherView:
        """The row as the teacher reads it."""
        return teacher_view(self.teacher, row, reuse_ids=self.reuse_ids)

    @cached_property
    def letter_forms(self) -> list[list[int]]:
        """The teacher's tokens for each letter."""
        return multiple_choice.letter_token_ids(self.teacher.tokenizer, self.config.letters)

    def _scored_shard(
        self, rows: Sequence[Row], per_row: int, progress: Progress
    ) -> tuple[list[Row], Row, tuple[int, int]]:
        """The rows of one shard with the teacher's columns, their metrics, and what was asked.

        That is the number of questions and of their tokens.
        """
        asked = self._asked(rows, per_row, progress)
        scored = [self._scored(one) for one in asked]
        metrics = reward_metrics(scored)
        if self.config.asks:
            metrics["mcq/too_long"] = sum(
                not one.quiz.asked and len(one.view.readable) > 1 for one in asked
            )
            metrics |= choice_metrics(
                [letters for one in asked for letters in self._letters(one)],
                [draws for one in asked for draws in self._of_draws(one)],
            )
            if effect := self._effect(scored, asked):
                metrics |= effect.metrics()
        questions = [ids for one in asked for ids in one.quiz.prompts]
        return scored, metrics, (len(questions), sum(map(len, questions)))

    def _asked(self, rows: Sequence[Row], per_row: int, progress: Progress) -> list[Asked]:
        """Each row with the teacher's answers about it."""
        views = [self.view(row) for row in rows]
        logps = self.teacher_numbers.logps(views)
        quizzes = [
            make_quiz(self.teacher, self.config, row, view)
            for row, view in zip(rows, views, strict=True)
        ]
        asked_now = 0

        def count(questions: int) -> None:
            nonlocal asked_now
            asked_now += questions
            progress(questions)

        tokens = [token for forms in self.letter_forms for token in forms]
        answers = self.teacher_numbers.choices([quiz.prompts for quiz in quizzes], tokens, count)
        progress(len(rows) * per_row - asked_now)  # the rest is known, or cannot be asked
        return list(map(Asked, rows, views, logps, quizzes, answers))

    def _letters(self, asked: Asked, renormalize: bool = True) -> list[tuple[list[float], float]]:
        """Of every question the probabilities of its letters, and their sum before any division."""
        return [
            multiple_choice.letter_probs(answer, self.letter_forms[: len(shown)], renormalize)
            for shown, answer in zip(asked.quiz.asked, asked.answers, strict=True)
        ]

    def _of_draws(self, asked: Asked) -> list[bool]:
        """Whether the places of each question say nothing about the responses in them.

        Samples are exchangeable. The teacher's own answer is the last response, and given ones may
        be in order, as chosen and rejected; only where each stands in every place is that no
        matter.
        """
        row, readable = asked.row, asked.view.readable
        own = row.get("from_teacher") or [False] * len(row["completions"])
        ordered = [theirs or row.get("sampled_by") == "given" for theirs in own]
        every_place = bool(self.config.mcq_every_place)
        return [
            every_place or not any(ordered[readable[position]] for position in shown)
            for shown in asked.quiz.asked
        ]

    def _scored(self, asked: Asked) -> Row:
        """The row with the teacher's columns; responses that it cannot read have None there."""
        view, choices = asked.view, None
        if asked.quiz.asked:
            renormalize = bool(self.config.mcq_renormalize)
            letters = [probs for probs, _ in self._letters(asked, renormalize)]
            choices = multiple_choice.choice_probs(len(view.readable), asked.quiz.asked, letters)
        rewards = teacher_rewards(
            self.config, self.engine.normalize, asked.logps, view.lengths, choices
        )
        return {
            **asked.row,
            "teacher_logps": view.for_all(asked.logps),
            "teacher_num_tokens": [len(ids) for ids in view.responses],
            "teacher_choice_probs": None if choices is None else view.for_all(choices),
            "teacher_rewards": view.for_all(rewards),
            "scored_by": self.engine.identity,
        }

    def _uncalibrated(self, asked: Asked) -> list[float]:
        """The rewards of the readable responses, without multiple choice."""
        return uncalibrated_rewards(asked.logps, asked.view.lengths, self.engine.normalize)

    def _effect(self, rows: Sequence[Row], asked: Sequence[Asked]) -> ChoiceEffect | None:
        """What multiple choice did to the rewards of scored rows that it asked about."""
        both = [(row, one) for row, one in zip(rows, asked, strict=True) if one.quiz.asked]
        floor, choices = self.config.mcq_floor or 0.0, []
        for row, one in both:
            known = [p for p in row["teacher_choice_probs"] if p is not None]
            choices.append(one.view.for_all(log_choices(known, floor)))
        return choice_effect(
            [len(one.quiz.asked) for _, one in both],
            [one.view.for_all(self._uncalibrated(one)) for _, one in both],
            choices,
            [row["teacher_rewards"] for row, _ in both],
        )
