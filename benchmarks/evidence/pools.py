"""Scored groups of responses, made by the phases of a run, on which methods are trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.evidence.settings import Size
from benchmarks.evidence.worlds import World
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline import rounds
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.evaluate.heldout import groups_folder
from pad_fast.pipeline.open_run import open_run
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.settings import Settings

COMMON: dict[str, Any] = {
    "temperature": 0.7,
    "score_batch_tokens": 4096,
    "mcq_preset": "paper",
    "mcq_weight": 0.0,
    "mcq_opponents": 2,
    "mcq_template": "{query}\n\n{options}\n\nWhich answer is best? Reply with its letter.",
    "validation_size": 0,  # the study has validation prompts of its own
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Pool:
    """What one student sampled to the training prompts and the held-out ones, and the scores.

    Args:
        folder: the run folder.
        world: of its prompts and teacher.
        models: the folder in which the study keeps models.
        student: that samples.
        size: numbers of prompts and responses.
        seed: of the run.
        changes: settings of the run, beside those that all pools have.
        unseen: whether the training prompts are of another draw than the world's own, which a
            student that was trained on those has not seen.
    """

    folder: Path
    world: World
    models: Path
    student: Path
    size: Size
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)
    unseen: bool = False

    @cached_property
    def run(self) -> RunContext:
        """The run, whose engines sample and score."""
        return RunContext(self._settings)

    @cached_property
    def rows(self) -> list[Row]:
        """The scored groups of the training prompts, the teacher's answer the last of each."""
        self._make()
        return read_rows(self.run.folder.round(1) / "scores")

    @cached_property
    def fixed(self) -> list[Row]:
        """The scored groups of the held-out prompts."""
        self._make()
        return read_rows(groups_folder(self.run))

    @cached_property
    def teacher(self) -> Checkpoint:
        """The teacher, whose weights are loaded once."""
        return self.run.teacher

    def trained(self, folder: Path) -> Checkpoint:
        """A trained student, with weights of the dtype of the run's models."""
        return Checkpoint("student", str(folder), dtype=self._settings.run.dtype)

    def teacher_answers(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The teacher's greedy answer to each prompt, as token ids."""
        how = Sampling(self.world.longest, temperature=0.0)
        engine = self.run.engines.open(self.teacher)
        with engine as teacher:
            return [group[0].ids for group in teacher.sample(prompts, 1, how, seed=0)]

    @cached_property
    def _settings(self) -> Settings:
        self.folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "heldout"):
            path = self.folder / f"{split}.jsonl"
            text = "".join(json.dumps(row) + "\n" for row in self.prompts(split))
            if not path.exists():
                path.write_text(text, encoding="utf-8")
        values = {
            "num_generations": self.size.generations,
            "heldout_num_generations": self.size.generations,
            "teacher_response": "greedy",
            "max_new_tokens": self.world.longest,
            **COMMON,
            **self.world.options,
            **self.changes,
        }
        config = RunConfig(
            student=str(self.student),
            teacher=str(self.world.teacher(self.models)),
            prompts=str(self.folder / "train.jsonl"),
            heldout=str(self.folder / "heldout.jsonl"),
            output_dir=str(self.folder / "run"),
            seed=self.seed,
            **values,
        )
        return Settings(config, {"divergence": "kl"})

    def prompts(self, split: str) -> list[Row]:
        """The prompts of a split that the run reads."""
        if split == "heldout":
            return self.world.prompts(self.models, split, self.size.heldout)
        if self.unseen:
            return self.world.unseen_prompts(self.models, self.size.prompts)
        return self.world.prompts(self.models, split, self.size.prompts)

    def _make(self) -> None:
        """Do what is missing of the phases that sample and score."""
        lock = FileLock(self.folder.parent / f"{self.folder.name}.lock")
        with lock, open_run(self._settings, trains=False) as run:
            rounds.sample(run, 1)
            rounds.score(run, 1)
            run.engines.close()


def is_scored(folder: Path) -> bool:
    """Whether the groups of the pool in a folder have their scores."""
    return (RunFolder(folder / "run").round(1) / "scores").exists()
