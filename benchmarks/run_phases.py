"""The phases of a run over many prompts, with models whose forwards are replaced by random numbers.

Everything else is a run's own: its settings, shards, cache, checks and files. ``benchmarks/
run_memory.py`` measures each phase in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import pad_fast
from pad_fast.evaluation.model_names import student as student_name
from pad_fast.pipeline import rounds
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.evaluate import heldout
from pad_fast.pipeline.finished import warn_of_lost_files
from pad_fast.pipeline.open_run import open_run
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.engines import Engine, Ids, Progress, Sample, Sampling, unseen
from pad_fast.pipeline.train import train_round
from pad_fast.report import write_report

WORLD = Path(pad_fast.__file__).parent / "tiny_world"
RESPONSES = 8  # to each prompt
LENGTHS = 8, 40  # tokens of a response, at least and at most
TRAINED_PROMPTS = 4096  # which are read in batches, where all are prepared
WORDS = ("red", "blue", "seven", "house", "tree", "river", "small", "old")
PARTS = ("greedy", "fresh", "scored", "fixed")  # what an evaluation reads
CONFIG = {
    "student": str(WORLD / "student"),
    "teacher": str(WORLD / "teacher"),
    "heldout_size": 0,
    "validation_size": 0,
    "rounds": 1,
    "num_generations": RESPONSES,
    "heldout_num_generations": RESPONSES,
    "max_new_tokens": LENGTHS[1],
    "shard_size": 1024,
    "mcq_style": "none",
    "divergence": "kl",
    "per_device_train_batch_size": 32,
    "disable_tqdm": True,
    "use_cpu": True,
    "baseline": "none",
    "seed": 0,
}


class RandomEngine(Engine):
    """An engine without a model: responses of random tokens and random log-probabilities."""

    @property
    def identity(self) -> str:
        return "random numbers"

    def sample(
        self,
        prompts: Sequence[Ids],
        n: int,
        how: Sampling,
        seed: int,
        progress: Progress = unseen,
        tokens: Progress = unseen,
    ) -> list[list[Sample]]:
        draw = np.random.default_rng(seed)
        ids = draw.integers(10, 90, (len(prompts), n, LENGTHS[1])).tolist()
        lengths = draw.integers(LENGTHS[0], LENGTHS[1], (len(prompts), n), endpoint=True).tolist()
        progress(len(prompts) * n)
        tokens(sum(map(sum, lengths)))
        return [
            [
                Sample(drawn[:length], "length", -1.5 * length - (drawn[0] + i) / 50)
                for i, (drawn, length) in enumerate(zip(group, sizes, strict=True))
            ]
            for group, sizes in zip(ids, lengths, strict=True)
        ]

    def logps(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[float]]:
        progress(sum(map(len, responses)))
        return [[-len(ids) - sum(ids[:4]) / 80 for ids in group] for group in responses]

    def choices(
        self, prompts: Sequence[Ids], token_ids: Ids, progress: Progress = unseen
    ) -> list[list[float]]:
        progress(len(prompts))
        return [[-1.0 - token % 7 for token in token_ids] for _ in prompts]


def write_world(folder: Path, prompts: int) -> None:
    """A file of prompts and the settings of a run over all of them."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("w") as stream:
        for number in range(prompts):
            text = " ".join(WORDS[i] for i in draw.integers(0, len(WORDS), 20))
            row = {
                "prompt": f"{number}: {text}?",
                "answer": str(number),
                "skill": WORDS[number % 4],
            }
            stream.write(json.dumps(row) + "\n")
    config = CONFIG | {"prompts": str(folder / "prompts.jsonl"), "output_dir": str(folder / "run")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


# The phases. Each goes on from the files of the one before.


@contextlib.contextmanager
def _run(folder: Path) -> Iterator[RunContext]:
    """The run as a command opens it, with engines of random numbers."""
    with open_run(parse_settings("run", [str(folder / "config.yaml")]), trains=False) as run:

        def engine(checkpoint: Checkpoint) -> Any:
            return contextlib.nullcontext(RandomEngine(checkpoint, run.training.normalize))

        run.engine = engine  # type: ignore[method-assign]
        yield run


def _open(folder: Path) -> None:
    with _run(folder):
        pass


def _sample(folder: Path) -> None:
    with _run(folder) as run:
        rounds.sample(run, 1)
        run.folder.finished("round-01/sample")


def _score(folder: Path) -> None:
    with _run(folder) as run:
        rounds.score(run, 1)
        run.folder.finished("round-01/score")


def _train(folder: Path) -> None:
    """Rows are prepared and teacher_beta is chosen; some batches are made, and none is trained."""

    def read(trainer: Any, *others: object) -> None:
        batches = TRAINED_PROMPTS // trainer.args.train_batch_size
        for _ in islice(trainer.get_train_dataloader(), batches):
            pass

    train_round.fit = read  # type: ignore[assignment]
    with _run(folder) as run:
        train_round.train_round(run, 1)


def _evaluate(folder: Path) -> None:
    """All prompts as held-out ones: the scored shards stand for everything that is sampled."""
    with _run(folder) as run:
        subject = heldout.Subject(student_name(1), 1, run.student(0))
        scores, samples = run.folder.round(1) / "scores", heldout._samples_folder(run, subject)
        for place in (heldout.groups_folder(run), *(samples / part for part in PARTS)):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(scores)
        heldout._write(run, subject)


def _report(folder: Path) -> None:
    write_report(folder / "run")


def _resume(folder: Path) -> None:
    with _run(folder) as run:
        warn_of_lost_files(run)
        rounds.sample(run, 1)
        rounds.score(run, 1)


PHASES: dict[str, Callable[[Path], None]] = {
    "open": _open,
    "sample": _sample,
    "score": _score,
    "prepare for training": _train,
    "evaluate": _evaluate,
    "report": _report,
    "resume": _resume,
}


def temporary_world(prompts: int, parent: Path | None = None) -> tempfile.TemporaryDirectory:
    """A folder with :func:`write_world`, which is removed after the block."""
    found = tempfile.TemporaryDirectory(prefix="pad-fast-run-memory-", dir=parent)
    write_world(Path(found.name), prompts)
    return found
