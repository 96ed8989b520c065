"""The teacher's scores of sampled responses: log-probability rewards, calibrated by multiple choice, each computed once.

The teacher sees text, so its tokenizer and its chat template may be others than the student's. Every number that it gives is
kept in a cache on disk under a hash of the exact tokens that it saw: what was computed for one round, one duplicate or a run
that was killed is not computed again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.files import Row, read_rows, write_rows
from pad_fast.pipeline.score.cache import ScoreCache

logger = logging.getLogger("pad_fast")

Ids = list[int]
OnShard = Callable[[int, Row], None]


@dataclass
class TeacherView:
    """One row as the teacher sees it. A response that it cannot see (empty, or beyond its window) has no ids and is masked."""

    prompt: Ids
    responses: list[Ids]
    live: list[int]


@dataclass
class Quiz:
    """The questions about one row; `plan` holds, for each, the positions in `TeacherView.live` in letter order."""

    questions: list[Ids]
    plan: list[tuple[int, ...]]


class Scorer:
    """Scores sampled rows with a teacher; `normalize` is that of the rewards, as in PADConfig."""

    def __init__(
        self,
        teacher: Checkpoint,
        student: Checkpoint,
        config: RunConfig,
        normalize: str,
        cache: ScoreCache,
    ) -> None:
        self.teacher, self.config, self.normalize, self.cache = teacher, config, normalize, cache
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
        """Write every shard of `samples` with the teacher's columns into `folder`, less those that are there.

        All log-probabilities come first and all questions after them, each under a bar of its own. `on_shard` is told the metrics
        of each shard before that is written.
        """
        todo = [
            (source, folder / source.name)
            for source in sorted(samples.glob("part-*.parquet"))
            if not (folder / source.name).exists()
        ]
        prompts = sum(pq.read_metadata(source).num_rows for source, _ in todo)
        quiet = self.config.disable_tqdm or not todo
        with tqdm(
            total=prompts * num_generations, desc=f"{title}: score", unit="response", disable=quiet
        ) as bar:
            for source, _ in todo:
                self._ask_logps([self.view(row) for row in read_rows(source)], bar.update)
        per_prompt, unasked = len(self._plan(num_generations)), 0
        with tqdm(
            total=prompts * per_prompt,
            desc=f"{title}: calibrate",
            unit="question",
            disable=quiet or not self.config.asks,
        ) as bar:
            for source, target in todo:
                rows = read_rows(source)
                views = [self.view(row) for row in rows]
                quizzes = [self.quiz(row, view) for row, view in zip(rows, views, strict=True)]
                missing = self._ask_choices(quizzes, bar.update)
                bar.update(len(rows) * per_prompt - missing)
                unasked += _unasked([view.live for view in views], quizzes)
                scored = [
                    self._scored(row, view, quiz)
                    for row, view, quiz in zip(rows, views, quizzes, strict=True)
                ]
                if on_shard is not None:
                    on_shard(int(source.stem.removeprefix("part-")), self._metrics(scored, quizzes))
                write_rows(target, scored)
        if self.config.asks and unasked:
            text = "%s: %d of %d prompts keep uncalibrated rewards, as a question about them is longer than the teacher's window of %d tokens"
            logger.warning(text, title, unasked, prompts, self.teacher.window)

    def view(self, row: Row) -> TeacherView:
        """The teacher's ids of a row's prompt and responses.

        With one tokenizer and template for both models the sampled ids are taken as they are. Otherwise the text is tokenised, and
        the teacher's end of turn follows only where the student ended its response.
        """
        prompt = row["prompt_ids"] if self.reuse_ids else self.teacher.prompt_ids(row["prompt"])
        responses = []
        for text, ids, reason in zip(
            row["completions"], row["completion_ids"], row["finish_reasons"], strict=True
        ):
            if not self.reuse_ids:
                ids = self.teacher.tokenizer.encode(text, add_special_tokens=False)
                ids += [self.teacher.end_of_turn_id] if reason == "stop" else []
            fits = self.teacher.window is None or len(prompt) + len(ids) <= self.teacher.window
            responses.append(ids if fits else [])
        return TeacherView(prompt, responses, [index for index, ids in enumerate(responses) if ids])

    def quiz(self, row: Row, view: TeacherView) -> Quiz:
        """The questions about a row's live responses; none where one of them is longer than the teacher's window."""
        query = multiple_choice.query_text(row["prompt"])
        texts = [row["completions"][index] for index in view.live]
        plan, questions = self._plan(len(view.live)), []
        for shown in plan:
            text = multiple_choice.choice_question(
                query, [texts[position] for position in shown], self.config.mcq_template
            )
            questions.append(self.teacher.prompt_ids([{"role": "user", "content": text}]))
        if self.teacher.window is not None and any(
            len(ids) >= self.teacher.window for ids in questions
        ):
            return Quiz([], [])
        return Quiz(questions, plan)

    @cached_property
    def letter_forms(self) -> list[list[int]]:
        return multiple_choice.letter_token_ids(self.teacher.tokenizer, self.config.letters)

    def _plan(self, responses: int) -> list[tuple[int, ...]]:
        config = self.config
        if not config.asks:
            return []
        return multiple_choice.question_plan(
            responses, config.mcq_style, bool(config.mcq_both_orders), config.mcq_opponents
        )

    def _logp_key(self, view: TeacherView, index: int) -> bytes:
        return self.cache.key("logp", view.prompt, view.responses[index])

    def _ask_logps(self, views: Sequence[TeacherView], progress: Callable[[int], object]) -> None:
        wanted = {
            self._logp_key(view, index): (view.prompt, view.responses[index])
            for view in views
            for index in view.live
        }
        missing = {key: pair for key, pair in wanted.items() if key not in self.cache.known}
        progress(sum(len(view.responses) for view in views) - len(missing))
        if not missing:
            return
        groups: dict[
            tuple[int, ...], dict[bytes, Ids]
        ] = {}  # a prompt's missing responses together, so that they can share it
        for key, (prompt, response) in missing.items():
            groups.setdefault(tuple(prompt), {})[key] = response
        options: dict[str, Any] = {
            "temperature": self.config.reward_temperature,
            "max_tokens_per_batch": self.config.score_batch_tokens,
        }
        options |= {
            "share_prefix": self.config.share_prefix,
            "normalize": "sum",
            "progress": progress,
        }
        responses = [list(group.values()) for group in groups.values()]
        for group, found in zip(
            groups.values(),
            score_responses(self.teacher.model, list(groups), responses, **options),
            strict=True,
        ):
            for key, logps in zip(group, found, strict=True):
                self.cache.add(key, [logps])
        self.cache.save()

    def _ask_choices(self, quizzes: Sequence[Quiz], progress: Callable[[int], object]) -> int:
        wanted = {self.cache.key("choice", ids): ids for quiz in quizzes for ids in quiz.questions}
        missing = {key: ids for key, ids in wanted.items() if key not in self.cache.known}
        if missing:
            tokens = [token for forms in self.letter_forms for token in forms]
            options: dict[str, Any] = {
                "max_tokens_per_batch": self.config.score_batch_tokens,
                "progress": progress,
            }
            found = next_token_logprobs(
                self.teacher.model, list(missing.values()), tokens, **options
            )
            for key, logps in zip(missing, found, strict=True):
                self.cache.add(key, logps)
            self.cache.save()
        return len(missing)

    def _letters(self, quiz: Quiz, renormalize: bool) -> list[tuple[list[float], float]]:
        """For every question the probabilities of its letters, and their mass before any renormalising."""
        return [
            multiple_choice.letter_probs(
                self.cache.known[self.cache.key("choice", ids)],
                self.letter_forms[: len(shown)],
                renormalize,
            )
            for shown, ids in zip(quiz.plan, quiz.questions, strict=True)
        ]

    def _scored(self, row: Row, view: TeacherView, quiz: Quiz) -> Row:
        nothing: list[float | None] = [None] * len(view.responses)
        logps, rewards, choices = list(nothing), list(nothing), list(nothing)
        letters = [probs for probs, _ in self._letters(quiz, bool(self.config.mcq_renormalize))]
        asked = (
            multiple_choice.choice_probs(len(view.live), quiz.plan, letters) if quiz.plan else None
        )
        for position, index in enumerate(view.live):
            (logp,) = self.cache.known[self._logp_key(view, index)]
            reward = logp / len(view.responses[index]) if self.normalize == "mean" else logp
            logps[index] = logp
            if asked is not None:
                choices[index] = asked[position]
                reward = multiple_choice.calibrated_reward(
                    reward,
                    asked[position],
                    self.config.mcq_weight or 0.0,
                    self.config.mcq_floor or 0.0,
                )
            rewards[index] = reward
        return {
            **row,
            "teacher_logps": logps,
            "teacher_num_tokens": [len(ids) for ids in view.responses],
            "teacher_choice_probs": None if asked is None else choices,
            "teacher_rewards": rewards,
        }

    def _metrics(self, rows: Sequence[Row], quizzes: Sequence[Quiz]) -> Row:
        groups = [
            [reward for reward in row["teacher_rewards"] if reward is not None] for row in rows
        ]
        rewards = [reward for group in groups for reward in group]
        metrics: Row = {
            "teacher/masked": sum(len(row["teacher_rewards"]) for row in rows) - len(rewards)
        }
        if rewards:
            metrics["teacher/reward_mean"] = sum(rewards) / len(rewards)
            metrics["teacher/reward_spread"] = sum(
                max(group) - min(group) for group in groups if group
            ) / sum(map(bool, groups))
        if self.config.asks:
            metrics["mcq/too_long"] = _unasked(groups, quizzes)
            letters = [
                answer for quiz in quizzes for answer in self._letters(quiz, renormalize=True)
            ]
            if letters:
                # The responses are exchangeable draws, so without a fondness for a letter the first of k has mean 1/k.
                metrics["mcq/position_bias"] = sum(
                    probs[0] - 1 / len(probs) for probs, _ in letters
                ) / len(letters)
                metrics["mcq/letter_mass"] = sum(mass for _, mass in letters) / len(letters)
        return metrics


def _unasked(groups: Sequence[Sequence[object]], quizzes: Sequence[Quiz]) -> int:
    """Groups of live responses that could be asked about and are not."""
    return sum(not quiz.plan for quiz, group in zip(quizzes, groups, strict=True) if len(group) > 1)
