"""The teacher's rewards of sampled responses, calibrated by multiple choice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from pad_fast.evaluation.choice import ChoiceEffect, choice_effect
from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.calibration import calibrated_rewards, log_choices
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.score.asked_questions import Quiz, configured_questions, make_quiz
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.metrics import choice_metrics, reward_metrics
from pad_fast.pipeline.score.teacher_view import TeacherView, teacher_view
from pad_fast.pipeline.whole_files import Row, read_rows, shard_index, shard_paths, write_rows

logger = logging.getLogger("pad_fast")

OnShard = Callable[[int, Sequence[Row], Row], None]
TEACHER_COLUMNS = (
    "teacher_logps",
    "teacher_num_tokens",
    "teacher_choice_probs",
    "teacher_rewards",
    "scored_by",
)


class Scorer:
    """Adds the teacher's columns to sampled rows.

    Args:
        teacher: the teacher.
        student: the base student, whose token ids the rows hold.
        config: the run's settings.
        engine: the teacher as it is asked.
        cache: holds what the teacher was asked before.
    """

    def __init__(
        self,
        teacher: Checkpoint,
        student: Checkpoint,
        config: RunConfig,
        engine: Engine,
        cache: ScoreCache,
    ) -> None:
        self.teacher, self.config, self.engine, self.cache = teacher, config, engine, cache
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
        """Write the shards of ``samples`` that ``folder`` lacks, with the teacher's columns.

        All log-probabilities come first and all questions after them.

        Args:
            samples: folder of sampled shards.
            folder: where the scored shards are.
            num_generations: number of responses in a row.
            title: of the two progress bars.
            on_shard: called with index, rows and metrics of each shard before it is written.
        """
        todo = [
            (source, folder / source.name)
            for source in shard_paths(samples)
            if not (folder / source.name).exists()
        ]
        rows = sum(pq.read_metadata(source).num_rows for source, _ in todo)
        quiet = self.config.disable_tqdm or not todo
        with tqdm(
            total=rows * num_generations, desc=f"{title}: score", unit="response", disable=quiet
        ) as bar:
            for source, _ in todo:
                self._ask_logps([self.view(row) for row in read_rows(source)], bar.update)
        per_row, unasked = len(configured_questions(self.config, num_generations)), 0
        with tqdm(
            total=rows * per_row,
            desc=f"{title}: calibrate",
            unit="question",
            disable=quiet or not self.config.asks,
        ) as bar:
            for source, target in todo:
                scored, metrics = self._scored_shard(read_rows(source), per_row, bar.update)
                unasked += metrics.get("mcq/too_long", 0)
                if on_shard is not None:
                    on_shard(shard_index(source), scored, metrics)
                write_rows(target, scored)
        if unasked:
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
        self, rows: Sequence[Row], per_row: int, progress: Callable[[int], object]
    ) -> tuple[list[Row], Row]:
        """The rows of one shard with the teacher's columns, and their metrics."""
        views = [self.view(row) for row in rows]
        quizzes = [
            make_quiz(self.teacher, self.config, row, view)
            for row, view in zip(rows, views, strict=True)
        ]
        asked_now = self._ask_choices(quizzes, progress)
        progress(len(rows) * per_row - asked_now)  # the rest is known, or cannot be asked
        scored = [
            self._scored(row, view, quiz)
            for row, view, quiz in zip(rows, views, quizzes, strict=True)
        ]
        metrics = reward_metrics(scored)
        if self.config.asks:
            metrics["mcq/too_long"] = sum(
                not quiz.asked and len(view.readable) > 1
                for quiz, view in zip(quizzes, views, strict=True)
            )
            answers = [answer for quiz in quizzes for answer in self._letters(quiz, True)]
            metrics |= choice_metrics(answers)
            if effect := self._effect(scored, views, quizzes):
                metrics |= effect.metrics()
        return scored, metrics

    def _logp_key(self, view: TeacherView, index: int) -> bytes:
        return self.cache.key("logp", view.prompt, view.responses[index])

    def _ask_logps(self, views: Sequence[TeacherView], progress: Callable[[int], object]) -> None:
        """Compute the log-probabilities of the responses that the cache does not hold."""
        wanted = {
            self._logp_key(view, index): (view.prompt, view.responses[index])
            for view in views
            for index in view.readable
        }
        missing = {key: pair for key, pair in wanted.items() if key not in self.cache.known}
        progress(sum(len(view.responses) for view in views) - len(missing))
        if not missing:
            return
        # A prompt's missing responses are asked together, so that they can share the prompt.
        groups: dict[tuple[int, ...], dict[bytes, list[int]]] = {}
        for key, (prompt, response) in missing.items():
            groups.setdefault(tuple(prompt), {})[key] = response
        responses = [list(group.values()) for group in groups.values()]
        found = self.engine.logps(list(groups), responses, progress)
        for group, logps in zip(groups.values(), found, strict=True):
            for key, logp in zip(group, logps, strict=True):
                self.cache.add(key, [logp])
        self.cache.save()

    def _ask_choices(self, quizzes: Sequence[Quiz], progress: Callable[[int], object]) -> int:
        """Ask the questions whose answers the cache does not hold; returns their number."""
        wanted = {self.cache.key("choice", ids): ids for quiz in quizzes for ids in quiz.prompts}
        missing = {key: ids for key, ids in wanted.items() if key not in self.cache.known}
        if missing:
            tokens = [token for forms in self.letter_forms for token in forms]
            prompts = list(missing.values())
            found = self.engine.choices(prompts, tokens, progress)
            for key, logps in zip(missing, found, strict=True):
                self.cache.add(key, logps)
            self.cache.save()
        return len(missing)

    def _letters(self, quiz: Quiz, renormalize: bool) -> list[tuple[list[float], float]]:
        """Of every question the probabilities of its letters, and their sum before any division."""
        return [
            multiple_choice.letter_probs(
                self.cache.known[self.cache.key("choice", ids)],
                self.letter_forms[: len(shown)],
                renormalize,
            )
            for shown, ids in zip(quiz.asked, quiz.prompts, strict=True)
        ]

    def _scored(self, row: Row, view: TeacherView, quiz: Quiz) -> Row:
        """The row with the teacher's columns; responses that it cannot read have None there."""
        logps, rewards = self._logps(view), self._uncalibrated(view)
        choices = None
        if quiz.asked:
            letters = [probs for probs, _ in self._letters(quiz, bool(self.config.mcq_renormalize))]
            choices = multiple_choice.choice_probs(len(view.readable), quiz.asked, letters)
            rewards = calibrated_rewards(
                rewards,
                choices,
                self.config.mcq_floor or 0.0,
                self.config.mcq_weight or 0.0,
                str(self.config.mcq_formula),
            )
        return {
            **row,
            "teacher_logps": view.for_all(logps),
            "teacher_num_tokens": [len(ids) for ids in view.responses],
            "teacher_choice_probs": None if choices is None else view.for_all(choices),
            "teacher_rewards": view.for_all(rewards),
            "scored_by": self.engine.identity,
        }

    def _logps(self, view: TeacherView) -> list[float]:
        """The log-probabilities of the responses that the teacher can read."""
        return [self.cache.known[self._logp_key(view, index)][0] for index in view.readable]

    def _uncalibrated(self, view: TeacherView) -> list[float]:
        """Their rewards, without multiple choice."""
        logps = self._logps(view)
        if self.engine.normalize != "mean":
            return logps
        return [
            logp / len(view.responses[index])
            for logp, index in zip(logps, view.readable, strict=True)
        ]

    def _effect(
        self, rows: Sequence[Row], views: Sequence[TeacherView], quizzes: Sequence[Quiz]
    ) -> ChoiceEffect | None:
        """What multiple choice did to the rewards of scored rows that it asked about."""
        asked = [place for place, quiz in enumerate(quizzes) if quiz.asked]
        floor, choices = self.config.mcq_floor or 0.0, []
        for place in asked:
            known = [p for p in rows[place]["teacher_choice_probs"] if p is not None]
            choices.append(views[place].for_all(log_choices(known, floor)))
        return choice_effect(
            [len(quizzes[place].asked) for place in asked],
            [views[place].for_all(self._uncalibrated(views[place])) for place in asked],
            choices,
            [rows[place]["teacher_rewards"] for place in asked],
        )
