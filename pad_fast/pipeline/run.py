"""What the phases of a run work on: its settings, folder, models and prompts."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import Settings
from pad_fast.pipeline.files import Row, derive_seed, read_rows
from pad_fast.pipeline.run_folder import Metrics, RunFolder
from pad_fast.pipeline.sample.shards import Sampler
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.scorer import Scorer


class Run:
    """What every phase works on. Round 0 is the base student; round r starts from the student of round r - 1."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.config = settings, settings.run
        self.folder = RunFolder(Path(str(settings.run.output_dir)))
        self.training = settings.pad_config(self.folder.root)
        self.metrics = Metrics(self.folder.root / "metrics.jsonl")
        self.teacher = self._checkpoint(
            "teacher", str(self.config.teacher), self.config.teacher_revision
        )

    def student(self, round: int) -> Checkpoint:
        """The student after `round`, which must be finished."""
        if round == 0:
            return self._checkpoint(
                "student", str(self.config.student), self.config.student_revision
            )
        return self._checkpoint("student", str(self.folder.student(round)), None)

    def _checkpoint(self, role: str, path: str, revision: str | None) -> Checkpoint:
        kwargs = self.config.chat_template_kwargs
        assert not isinstance(kwargs, str)
        return Checkpoint(
            role, path, revision, self.config.dtype, self.config.attn_implementation, kwargs
        )

    def sampler(self, num_generations: int, *, rewards: bool = False) -> Sampler:
        return Sampler(self.config, num_generations, self.training.normalize if rewards else None)

    @contextlib.contextmanager
    def scorer(self) -> Iterator[Scorer]:
        """The teacher, scoring; its memory is free again afterwards."""
        cache = ScoreCache(self.folder.root / "teacher_cache")
        try:
            yield Scorer(self.teacher, self.student(0), self.config, self.training.normalize, cache)
        finally:
            self.teacher.free()

    @cached_property
    def train_rows(self) -> list[Row]:
        return read_rows(self.folder.root / "prompts.parquet")

    @cached_property
    def heldout_rows(self) -> list[Row]:
        path = self.folder.root / "heldout" / "prompts.parquet"
        return read_rows(path) if path.exists() else []

    @property
    def has_answers(self) -> bool:
        return any(row["answer"] is not None for row in self.heldout_rows)

    def round_rows(self, round: int) -> list[Row]:
        """The prompts of a round: the next ones of an endless sequence of shuffles of all prompts."""
        count = self.config.prompts_per_round or len(self.train_rows)
        start = (round - 1) * count
        order: list[int] = []
        for epoch in range(-(-(start + count) // len(self.train_rows))):
            shuffled = list(range(len(self.train_rows)))
            random.Random(derive_seed(self.config.seed, "prompts", epoch)).shuffle(shuffled)
            order += shuffled
        return [self.train_rows[index] for index in order[start : start + count]]


def round_seed(seed: int, round: int, phase: str) -> int:
    """The seed of one phase of one round."""
    return derive_seed(seed, round, phase)
