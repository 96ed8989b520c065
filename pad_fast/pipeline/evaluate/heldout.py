"""Evaluation on the held-out prompts: right answers, and rankings like the teacher's.

Rankings are compared on fixed groups, which the base student samples once and the teacher scores
once, so that all rounds are measured on the same responses. They are also compared on fresh
samples of each student, which change from round to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pad_fast.evaluation import reported_metrics
from pad_fast.evaluation.evaluated_model import Evaluated, RewardPair
from pad_fast.evaluation.model_names import BASE, TEACHER
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.restore import restore_samples
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample import given
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.sample.shards import sample_shards, shards, unfinished
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.whole_files import Row, read_rows, write_json, write_rows


@dataclass(frozen=True)
class Subject:
    """A model to evaluate; see :mod:`pad_fast.evaluation.model_names` for its name.

    The base student's own samples are the fixed groups, unless these are ``given``.
    """

    name: str
    round: int
    checkpoint: Checkpoint
    given: bool = False

    @property
    def is_teacher(self) -> bool:
        return self.name == TEACHER

    @property
    def is_base(self) -> bool:
        return self.name == BASE

    @property
    def has_scored_samples(self) -> bool:
        """Whether there are samples of this model's own, which the teacher or reward model scores.

        The teacher does not judge itself.
        """
        return not self.is_teacher and (not self.is_base or self.given)

    @property
    def has_fixed_file(self) -> bool:
        """Whether its rewards of the fixed groups are in a file of their own."""
        return not self.is_teacher and not self.is_base


def sample_groups(run: RunContext) -> None:
    """Sample the responses of the fixed groups from the base student, unless they are given."""
    folder = run.folder.root / "heldout" / "samples"
    if given.is_given(run.heldout_rows):
        given.write_samples(run, run.heldout_rows, folder, rewards=True)
        return
    count = run.config.heldout_num_generations or 0
    if unfinished(run.heldout_rows, folder, run.config.shard_size):
        with run.engine(run.student(0)) as student:
            sample_shards(
                student,
                run.heldout_rows,
                folder,
                run.sampler(count, rewards=True),
                seed=round_seed(run.config.seed, 0, "sample"),
                title="held-out · sample",
            )


def sample_base(run: RunContext) -> None:
    """Sample the base student's greedy responses, which its evaluation reads."""
    _sample(run, base(run))


def base(run: RunContext) -> Subject:
    """The base student."""
    return Subject(BASE, 0, run.student(0), given.is_given(run.heldout_rows))


def groups_folder(run: RunContext) -> Path:
    """The folder of the fixed groups, sampled and scored."""
    return run.folder.root / "heldout" / "groups"


def evaluate(run: RunContext, subjects: Sequence[Subject]) -> None:
    """Write the files of each model's evaluation that are not there."""
    todo = [
        subject
        for subject in subjects
        if not all(path.exists() for path in evaluation_files(run, subject))
    ]
    for subject in todo:
        _sample(run, subject)
    scored = [subject for subject in todo if subject.has_scored_samples and run.config.has_judge]
    if scored:
        count = run.config.heldout_num_generations or 0
        with run.scorer() as scorer:
            for subject in scored:
                folder, title = _samples_folder(run, subject), f"evaluate {subject.name}"
                scorer.score_shards(folder / "fresh", folder / "scored", count, title=title)
    for subject in todo:
        _write(run, subject)


def evaluation_files(run: RunContext, subject: Subject) -> list[Path]:
    """The files that the evaluation of one model leaves."""
    folder, summary = _samples_folder(run, subject), run.folder.evaluation(subject.name)
    parts = ["greedy"]
    parts += ["fresh"] if subject.is_teacher or subject.has_scored_samples else []
    parts += ["scored"] if subject.has_scored_samples and run.config.has_judge else []
    found = [summary, summary.with_suffix(".parquet")]
    found += [folder / "fixed.parquet"] if subject.has_fixed_file else []
    return found + [
        path
        for part in parts
        for _, path, _ in shards(run.heldout_rows, folder / part, run.config.shard_size)
    ]


def _samples_folder(run: RunContext, subject: Subject) -> Path:
    return run.folder.root / "evaluation" / "samples" / subject.name


def _sample(run: RunContext, subject: Subject) -> None:
    """A model's greedy responses, its samples, and its rewards of the fixed groups."""
    folder, rows, size = _samples_folder(run, subject), run.heldout_rows, run.config.shard_size
    restore_samples(folder / "scored", folder / "fresh")
    own = subject.is_teacher or subject.has_scored_samples
    parts = ("greedy", "fresh") if own else ("greedy",)
    path = folder / "fixed.parquet"
    fixed = subject.has_fixed_file and not path.exists()
    if not fixed and not any(unfinished(rows, folder / part, size) for part in parts):
        return
    if subject.is_teacher:
        ids = [subject.checkpoint.prompt_ids(row["prompt"]) for row in rows]
        rows = [{**row, "prompt_ids": found} for row, found in zip(rows, ids, strict=True)]
    title = f"evaluate {subject.name}"
    seed = round_seed(run.config.seed, subject.round, title)
    greedy = run.sampler(0)
    with run.engine(subject.checkpoint) as model:
        sample_shards(model, rows, folder / "greedy", greedy, seed=seed, title=f"{title}: greedy")
        if own:
            count = run.config.heldout_num_generations or 0
            fresh = run.sampler(count, rewards=not subject.is_teacher)
            sample_shards(model, rows, folder / "fresh", fresh, seed=seed, title=f"{title}: sample")
        if fixed:
            write_rows(path, _fixed_rewards(run, model, f"{title}: fixed groups"))


def _fixed_rewards(run: RunContext, student: Engine, title: str) -> list[Row]:
    """The student's rewards of the fixed groups."""
    groups, config = read_rows(groups_folder(run)), run.config
    responses = [row["completion_ids"] for row in groups]
    count = sum(map(len, responses))
    with tqdm(total=count, desc=title, unit="response", disable=config.disable_tqdm) as bar:
        prompts = [row["prompt_ids"] for row in groups]
        rewards = student.rewards(prompts, responses, bar.update)
    return [
        {"prompt_id": row["prompt_id"], "student_rewards": found}
        for row, found in zip(groups, rewards, strict=True)
    ]


def _write(run: RunContext, subject: Subject) -> None:
    """A model's numbers as JSON, and what they are made of, a row for each prompt, as Parquet."""
    evaluated = _read(run, subject)
    unknown: list[Any] = [None] * len(evaluated.greedy)
    rewards = evaluated.fixed.student if evaluated.fixed else unknown
    rows: list[Row] = [
        {
            "prompt_id": row["prompt_id"],
            "greedy_text": row["completions"][0],
            "student_rewards": found,
            "ppd_loss": loss,
        }
        for row, found, loss in zip(
            evaluated.greedy, rewards, evaluated.losses or unknown, strict=True
        )
    ]
    measured = reported_metrics.measure(evaluated)
    path = run.folder.evaluation(subject.name)
    write_rows(path.with_suffix(".parquet"), rows)
    run.metrics.add(subject.round, 0, "evaluate", {"name": subject.name, **measured})
    facts = {"name": subject.name, "round": subject.round, "num_prompts": len(rows)}
    write_json(path, {**facts, **measured})


def _read(run: RunContext, subject: Subject) -> Evaluated:
    """What was sampled and scored of a model."""
    folder, groups = _samples_folder(run, subject), read_rows(groups_folder(run))
    greedy, rule = read_rows(folder / "greedy"), run.config.answer_rule
    if subject.is_teacher:
        own = read_rows(folder / "fresh")
        return Evaluated(greedy, own, sampling_metrics(own), rule=rule)
    rewarded = read_rows(folder / "fixed.parquet") if subject.has_fixed_file else groups
    fixed = _pair(rewarded, groups)
    sampled = groups
    fresh: RewardPair | None = fixed
    if subject.has_scored_samples:
        judged = run.config.has_judge
        sampled = read_rows(folder / ("scored" if judged else "fresh"))
        fresh = _pair(sampled, sampled) if judged else None
    losses = prompt_losses(fixed, run.chosen_training, [row["student_rewards"] for row in groups])
    return Evaluated(greedy, sampled, sampling_metrics(sampled), fixed, fresh, losses, rule)


def _pair(students: Sequence[Row], teachers: Sequence[Row]) -> RewardPair:
    return RewardPair(
        [row["student_rewards"] for row in students], [row["teacher_rewards"] for row in teachers]
    )
