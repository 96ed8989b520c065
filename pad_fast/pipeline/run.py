"""An opened run: its settings, folder, models and prompts, new or found where it was left."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from pad_fast.pipeline import prompts
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import Settings, differing
from pad_fast.pipeline.environment import versions
from pad_fast.pipeline.sampling import Sampler
from pad_fast.pipeline.scoring import ScoreCache, Scorer
from pad_fast.pipeline.store import Metrics, Row, RunFolder, derive_seed, read_rows, write_json, write_rows

logger = logging.getLogger("pad_fast")

FORMAT = 1


class Run:
    """What every phase works on. Round 0 is the base student; round r starts from the student of round r - 1."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.config = settings, settings.run
        self.folder = RunFolder(Path(str(settings.run.output_dir)))
        self.training = settings.pad_config(self.folder.root)
        self.metrics = Metrics(self.folder.root / "metrics.jsonl")
        self.teacher = self._checkpoint("teacher", str(self.config.teacher), self.config.teacher_revision)

    def student(self, round: int) -> Checkpoint:
        """The student after `round`, which must be finished."""
        if round == 0:
            return self._checkpoint("student", str(self.config.student), self.config.student_revision)
        return self._checkpoint("student", str(self.folder.student(round)), None)

    def _checkpoint(self, role: str, path: str, revision: str | None) -> Checkpoint:
        kwargs = self.config.chat_template_kwargs
        assert not isinstance(kwargs, str)
        return Checkpoint(role, path, revision, self.config.dtype, self.config.attn_implementation, kwargs)

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


@contextlib.contextmanager
def open_run(settings: Settings) -> Iterator[Run]:
    """Start the run or find it where it was left, and hold its folder meanwhile.

    Everything that can be checked before the first token is sampled is checked here: ValueError for prompts, models and settings
    that do not fit, and for a run folder that was started with others.
    """
    run = Run(settings)
    with run.folder.locked():
        if run.folder.manifest_path.exists():
            _check_unchanged(run)
        else:
            _prepare(run)
        yield run


def _prepare(run: Run) -> None:
    config, root = run.config, run.folder.root
    train = prompts.read_prompts(str(config.prompts), config.prompts_split, config.prompts_subset)
    if config.heldout is not None:
        heldout = prompts.read_prompts(config.heldout, config.heldout_split, config.prompts_subset)[: config.heldout_size]
        train = prompts.without(train, heldout) if heldout else train
    else:
        train, heldout = prompts.split_heldout(train, config.heldout_size)
    teacher = run.teacher
    student = run.student(0)
    most = min(config.max_prompt_length or 1 << 62, (student.window or 1 << 62) - config.max_new_tokens)
    if most < 1:
        raise ValueError(f"max_new_tokens: {config.max_new_tokens} leave no room for a prompt in the student's window of {student.window}")
    train, heldout = (_fitting(rows, student, teacher, most, config.long_prompts) for rows in (train, heldout))
    if not train:
        raise ValueError(f"prompts: every one of them is longer than {most} tokens")
    write_rows(root / "prompts.parquet", train)
    if heldout:
        write_rows(root / "heldout" / "prompts.parquet", heldout)
    manifest = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "config": run.settings.flat(),
        "seeds": {"run": config.seed, **{f"round-{r:02d}": round_seed(config.seed, r, "train") for r in range(1, config.rounds + 1)}},
        "versions": versions(),
        "models": {"student": student.fingerprint(), "teacher": teacher.fingerprint()},
        "prompts": {"train": len(train), "heldout": len(heldout), "files": _file_hashes(run)},
        "phases": {},
    }
    write_json(run.folder.manifest_path, manifest)


def round_seed(seed: int, round: int, phase: str) -> int:
    """The seed of one phase of one round."""
    return derive_seed(seed, round, phase)


def _fitting(rows: list[Row], student: Checkpoint, teacher: Checkpoint, most: int, long_prompts: str) -> list[Row]:
    """The rows whose prompt fits both models, with the student's `prompt_ids`."""
    same = teacher.same_tokenizer(student)
    kept = []
    for row in rows:
        try:
            ids = student.prompt_ids(row["prompt"])
            teacher_ids = ids if same else teacher.prompt_ids(row["prompt"])
        except ValueError as error:
            raise ValueError(f"prompt {row['prompt_id']!r}: {error}") from None
        short = len(ids) <= most and len(teacher_ids) < (teacher.window or 1 << 62)
        if not short and long_prompts == "error":
            raise ValueError(
                f"prompt {row['prompt_id']!r} has {len(ids)} tokens for the student, where {most} fit beside max_new_tokens, and "
                f"{len(teacher_ids)} for the teacher with a window of {teacher.window}; shorten it or set long_prompts to drop: "
                f"{row['prompt'][-1]['content']!r:.60}"
            )
        if short:
            kept.append({**row, "prompt_ids": ids})
    if len(kept) < len(rows):
        logger.warning("%d of %d prompts are longer than %d tokens and are dropped", len(rows) - len(kept), len(rows), most)
    return kept


def _check_unchanged(run: Run) -> None:
    manifest = run.folder.manifest()
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"output_dir: {run.folder.root} was written in format {manifest.get('format')}, this is {FORMAT}; take a new folder"
        )
    before, now = manifest["config"], run.settings.flat()
    if changed := differing(before, now):
        name = changed[0]
        raise ValueError(
            f"{name}: {run.folder.root} was started with {before.get(name)!r}, got {now.get(name)!r}; "
            f"go on with the former or give another output_dir"
        )
    for role, checkpoint in (("student", run.student(0)), ("teacher", run.teacher)):
        if checkpoint.fingerprint() != manifest["models"][role]:
            raise ValueError(f"{role}: {checkpoint.path} is not the model that {run.folder.root} was started with; give another output_dir")
    for path, digest in _file_hashes(run).items():
        if manifest["prompts"]["files"].get(path, digest) != digest:
            raise ValueError(f"prompts: {path} is not the file that {run.folder.root} was started with; give another output_dir")
    if now != before:  # more rounds, or settings without influence on the results
        write_json(run.folder.manifest_path, {**manifest, "config": now})


def _file_hashes(run: Run) -> dict[str, str]:
    paths = [Path(source) for source in (run.config.prompts, run.config.heldout) if source is not None]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}
