"""What the phases of a run share: settings, folder, models, prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pad_fast.files.stored_rows import RowFiles, Rows, column, left_out, take
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.compared import folder_of
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.data_types import dtype_name
from pad_fast.pipeline.parquet_rows import keep_shards, read_rows
from pad_fast.pipeline.ranks import Ranks, current_ranks
from pad_fast.pipeline.run_folder import Metrics, RunFolder
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.generate import Sampler
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.score.reward_model import RewardModel, RewardScorer
from pad_fast.pipeline.score.scorer import Scorer
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.serving.run_engines import RunEngines
from pad_fast.pipeline.settings import Settings
from pad_fast.pipeline.weights import weights_digest
from pad_fast.training.config import PADConfig

# A tenth of the training prompts is kept for validation, within these numbers; with fewer, chance
# would choose the round.
LEAST_VALIDATION, MOST_VALIDATION = 16, 128

Model = TypeVar("Model", bound=Checkpoint)


def validation_size(config: RunConfig, prompts: int, has_answers: Callable[[], bool]) -> int:
    """How many of a run's training prompts choose among its rounds.

    Args:
        config: the run's settings.
        prompts: their number.
        has_answers: says whether any of them has an answer to compare with, if that matters.
    """
    size = config.validation_size
    if size is None:
        size = min(MOST_VALIDATION, prompts // 10)
        size = size if size >= LEAST_VALIDATION and not config.responses else 0
        if size and not config.has_judge and not has_answers():
            size = 0
    return min(size, prompts - 1)


class RunContext:
    """The context of a run, which every phase is given.

    Round 0 is the base student. Round r starts from the student of round r - 1. A chat template
    that writes the date writes that of the run's start, also where the run is resumed later.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.config = settings, settings.run
        self.folder = RunFolder(Path(str(settings.run.output_dir)))
        self.training = settings.pad_config(self.folder.root)
        self.ranks = current_ranks()
        self.files = RowFiles(self.folder.rows / f"rank-{self.ranks.rank}")
        self._places_of: dict[int, NDArray[np.int64]] = {}
        self.started = self._start()
        self.reported = time.monotonic()  # when the report was last brought up to date
        self.metrics = Metrics(self.folder.root / "metrics.jsonl", writes=self.ranks.is_main)
        self.scores = ModelScores(
            self.config,
            self.training.normalize,
            self.training.impl,
            self._add_implementation,
        )
        self.engines = RunEngines(
            self.config,
            self.scores,
            self.folder.root,
            self._add_engine,
            self._telling_rows,
            self._other_students,
            self._longest_prompts,
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """What the first training chose for settings that were left open: ``teacher_beta``."""
        if not self.training.chooses_teacher_beta or not self.folder.manifest_path.exists():
            return {}
        return dict(self.folder.manifest().get("chosen", {}))

    @property
    def chosen_training(self) -> PADConfig:
        """The arguments of the training, with what the first one chose."""
        return self.settings.pad_config(self.folder.root, **self.chosen)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the run's own training and of each compared method, by name."""
        methods = {
            name: self.settings.method_config(name, self.folder.root).learning_rate
            for name in self.config.methods
        }
        return {"the run": self.training.learning_rate, **methods}

    @cached_property
    def judge(self) -> Checkpoint | None:
        """What scores responses, the teacher or a reward model; None if all scores are given."""
        if self.config.teacher:
            return self.teacher
        return self.reward_model if self.config.reward_model else None

    @cached_property
    def teacher(self) -> Checkpoint:
        """The teacher, of a run that has one."""
        path, revision = self.config.teacher, self.config.teacher_revision
        found = self._checkpoint(Checkpoint, "teacher", str(path), revision)
        elsewhere = bool(self.config.teacher_server)
        prompt = self.config.teacher_system_prompt
        return dataclasses.replace(found, system_prompt=prompt, served=elsewhere)

    @cached_property
    def reward_model(self) -> RewardModel:
        """The reward model, of a run that has one."""
        path, revision = self.config.reward_model, self.config.reward_model_revision
        return self._checkpoint(RewardModel, "reward_model", str(path), revision)

    def _start(self) -> datetime.datetime:
        """When the run was started, which is now if it was not; the same time on all ranks."""
        known = self.folder.started() if self.ranks.is_main else None
        now = known or datetime.datetime.now(datetime.UTC)
        return datetime.datetime.fromisoformat(self.ranks.agree(now.isoformat()))

    def _add_implementation(self, name: str) -> None:
        if self.ranks.is_main:
            self.folder.add_implementation(name)

    def _add_engine(self, role: str, identity: str) -> None:
        if self.ranks.is_main:
            self.folder.add_engine(role, identity)

    def student(self, round: int) -> Checkpoint:
        """The student after ``round``, which must be finished."""
        if round == 0:
            path, revision = str(self.config.student), self.config.student_revision
            return self._checkpoint(Checkpoint, "student", path, revision)
        return self.trained(self.folder.student(round))

    def trained(self, folder: Path) -> Checkpoint:
        """A student that the run trained, whose files are compared with what was saved.

        It samples and scores in the data type of the base student, whatever it was trained in: the
        run's batches were chosen for that one, and the two are compared with one another.
        """
        found = self._checkpoint(Checkpoint, "student", str(folder), None)
        check = partial(self.folder.check_whole, folder)
        return dataclasses.replace(found, dtype=self._student_dtype, check=check)

    @cached_property
    def _student_dtype(self) -> str:
        """The data type that the base student samples and scores in."""
        return dtype_name(self.student(0).loaded_dtype)

    def _checkpoint(self, kind: type[Model], role: str, path: str, revision: str | None) -> Model:
        kwargs = self.config.chat_template_kwargs
        assert not isinstance(kwargs, str)
        return kind(
            role,
            path,
            revision,
            self.config.dtype,
            self.config.attn_implementation,
            kwargs,
            now=self.started,
        )

    def sampler(self, num_generations: int, *, rewards: bool = False) -> Sampler:
        """A sampler of ``num_generations`` responses to each prompt; 0 asks for a greedy one.

        With ``rewards`` the model's own rewards of its responses are stored with them.
        """
        return Sampler(self.config, num_generations, rewards)

    def engine(self, checkpoint: Checkpoint) -> contextlib.AbstractContextManager[Engine]:
        """What runs a model inside a block, see :meth:`RunEngines.open`.

        Where servers run it, rank 0 alone asks them, and keeps all of them busy.
        """
        if self.engines.are_servers(checkpoint) and not self.ranks.is_main:
            return contextlib.nullcontext(TransformersEngine(checkpoint, self.scores))
        return self.engines.open(checkpoint)

    def workers(self, checkpoint: Checkpoint) -> Ranks:
        """The ranks that work on what a model is asked: rank 0 alone where servers run it."""
        served = self.engines.are_servers(checkpoint)
        return self.ranks.only_main() if served else self.ranks

    def try_servers(self) -> None:
        """Try out the servers on rank 0, see :meth:`RunEngines.try_servers`.

        The other ranks wait: a server that is started may need the memory of all GPUs.
        """
        # Once a student is trained, its server may have been stopped for that, and is waited for.
        untrained = not self.folder.student(1).exists()
        teachers = [self.teacher] if self.config.teacher else []
        models = [self.student(0)] * untrained + teachers
        begun = any(self.folder.root.glob("*/samples/part-*"))
        self.ranks.on_main(lambda: self.engines.try_servers(models, own=not begun))

    def _longest_prompts(self) -> dict[str, int]:
        """The tokens of the longest prompt for each model, from when the run was prepared."""
        if not self.folder.manifest_path.exists():  # as of `pad-fast doctor`
            return {}
        return dict(self.folder.manifest()["prompts"].get("longest", {}))

    def _other_students(self, wanted: Checkpoint) -> list[Checkpoint]:
        """The students beside ``wanted`` that a server may still have, as far as they are trained.

        They are the last two of the rounds, and those that are evaluated beside the round's.
        """
        rounds = range(1, self.config.rounds + 1)
        students = [self.student(r) for r in rounds if self.folder.student(r).exists()]
        if students:
            students.insert(0, self.student(0))
        methods = [folder_of(self.folder.root, name) for name in self.config.methods]
        beside = [folder / "student" for folder in (self.folder.seqkd, *methods)]
        last = [student for student in students if student.path != wanted.path][-2:]
        return last + [
            self.trained(folder)
            for folder in beside
            if folder.exists() and str(folder) != wanted.path
        ]

    def _telling_rows(self) -> Rows:
        """The responses of the last round that was sampled, else prompts."""
        for part in ("scores", "samples"):
            folders = sorted(self.folder.root.glob(f"round-*/{part}/part-*.parquet"))
            if folders:
                return read_rows(folders[-1])
        return self.train_rows

    @contextlib.contextmanager
    def scorer(self) -> Iterator[Scorer | RewardScorer]:
        """The scoring teacher or reward model, whose memory is released afterwards."""
        if self.judge is None:
            raise ValueError(
                "teacher: needed to score responses that have no scores, and neither it nor a "
                "reward_model is given"
            )
        if not self.config.teacher:
            model, config = self.reward_model, self.config
            try:
                with contextlib.closing(self._cache(model.identity)) as cache:
                    yield RewardScorer(
                        model, cache, self.scores.limits.score, config.disable_tqdm, self.ranks
                    )
            finally:
                model.free()
            return
        with (
            self.engine(self.teacher) as engine,
            contextlib.closing(self._cache(engine.identity)) as cache,
        ):
            ranks = self.workers(self.teacher)
            yield Scorer(self.teacher, self.student(0), self.config, engine, cache, ranks)

    def _cache(self, identity: str) -> ScoreCache:
        """The cache of the judge's numbers, the run's own or the one that runs share."""
        shared = self.config.score_cache
        if shared is None:  # the run folder is bound to one judge
            cache = ScoreCache(self.folder.root / "teacher_cache", identity)
            cache.tidy(0)  # the folder's lock is held
            return cache
        return ScoreCache(Path(shared), f"{identity} {self._judge_weights}")

    @cached_property
    def _judge_weights(self) -> str:
        assert self.judge is not None
        return weights_digest(self.judge.path, self.judge.config, served=self.judge.served)

    @cached_property
    def _prompt_rows(self) -> Rows:
        return keep_shards(self.files, self.folder.root / "prompts.parquet")

    @cached_property
    def _validation_places(self) -> list[int]:
        """Which of the prompts are kept from training: drawn once, by the run's seed."""
        rows = self._prompt_rows
        size = validation_size(self.config, len(rows), lambda: any(column(rows, "answer")))
        draw = random.Random(derive_seed(self.config.seed, "validation"))
        return sorted(draw.sample(range(len(rows)), size))

    @cached_property
    def train_rows(self) -> Rows:
        """The training prompts."""
        return take(self._prompt_rows, left_out(len(self._prompt_rows), self._validation_places))

    @cached_property
    def validation_rows(self) -> Rows:
        """The prompts that choose among the rounds."""
        return take(self._prompt_rows, self._validation_places)

    @cached_property
    def heldout_rows(self) -> Rows:
        """The held-out prompts."""
        path = self.folder.root / "heldout" / "prompts.parquet"
        return keep_shards(self.files, path) if path.exists() else []

    @cached_property
    def has_answers(self) -> bool:
        """Whether a held-out prompt has an answer to compare with."""
        return any(answer is not None for answer in column(self.heldout_rows, "answer"))

    def round_rows(self, round: int) -> Rows:
        """The prompts of a round, see :meth:`round_places`."""
        return take(self.train_rows, self.round_places(round))

    def places_until(self, round: int) -> NDArray[np.int64]:
        """Which of the training prompts the rounds up to one have, each once, the first first."""
        every = [self.round_places(each) for each in range(1, round + 1)]
        places = np.concatenate([np.zeros(0, np.int64), *every])
        return places[np.sort(np.unique(places, return_index=True)[1])]

    def round_places(self, round: int) -> NDArray[np.int64]:
        """Which of the training prompts a round has: the next of an endless sequence of shuffles.

        Each shuffle is of all training prompts.
        """
        if round not in self._places_of:
            every = len(self.train_rows)
            count = self.config.prompts_per_round or every
            start = (round - 1) * count
            parts = []
            for epoch in range(start // every, -(-(start + count) // every)):
                shuffled = list(range(every))
                random.Random(derive_seed(self.config.seed, "prompts", epoch)).shuffle(shuffled)
                first = epoch * every
                parts.append(shuffled[max(0, start - first) : start + count - first])
            self._places_of[round] = np.concatenate([np.asarray(part, np.int64) for part in parts])
        return self._places_of[round]
