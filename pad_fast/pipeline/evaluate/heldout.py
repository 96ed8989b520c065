"""Evaluation on the held-out prompts: answers, and the agreement of the student's ranking with the teacher's.

Agreement is measured on fixed groups, sampled once from the base student and scored once by the teacher, so that all rounds are
compared on the same responses; and beside it on fresh samples of the student itself, which change from round to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.evaluate import measures
from pad_fast.pipeline.files import Row, read_rows, write_json, write_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.seeds import round_seed

BASE = "student-00"


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: `teacher`, `student-RR` or `seqkd`."""

    name: str
    round: int
    checkpoint: Checkpoint

    @property
    def is_teacher(self) -> bool:
        return self.name == "teacher"


def sample_groups(run: RunContext) -> None:
    """The fixed groups' responses, from the base student."""
    folder, student = run.folder.root / "heldout" / "samples", run.student(0)
    count = run.config.heldout_num_generations or 0
    if unfinished(run.heldout_rows, folder, run.config.shard_size):
        seed = round_seed(run.config.seed, 0, "sample")
        sample_shards(
            student,
            run.heldout_rows,
            folder,
            run.sampler(count, rewards=True),
            seed=seed,
            title="held-out · sample",
        )
        student.free()


def groups_folder(run: RunContext) -> Path:
    return run.folder.root / "heldout" / "groups"


def evaluate(run: RunContext, subjects: Sequence[Subject]) -> None:
    """Write `evaluation/NAME.parquet` and then `evaluation/NAME.json` for every subject that has none."""
    todo = [subject for subject in subjects if not run.folder.evaluation(subject.name).exists()]
    for subject in todo:
        _sample(run, subject)
    if any(_has_own_samples(subject) for subject in todo):
        with run.scorer() as scorer:
            for subject in filter(_has_own_samples, todo):
                folder, count = _work(run, subject), run.config.heldout_num_generations or 0
                scorer.score_shards(
                    folder / "fresh", folder / "scored", count, title=f"evaluate {subject.name}"
                )
    for subject in todo:
        _write(run, subject)


def _has_own_samples(subject: Subject) -> bool:
    """The base student's fresh samples are the fixed groups; the teacher's own are not for it to judge."""
    return subject.name != BASE and not subject.is_teacher


def _work(run: RunContext, subject: Subject) -> Path:
    return run.folder.root / "evaluation" / "samples" / subject.name


def _sample(run: RunContext, subject: Subject) -> None:
    folder, checkpoint, rows = _work(run, subject), subject.checkpoint, run.heldout_rows
    if subject.is_teacher:
        rows = [{**row, "prompt_ids": checkpoint.prompt_ids(row["prompt"])} for row in rows]
    count = run.config.heldout_num_generations or 0
    seed = round_seed(run.config.seed, subject.round, f"evaluate {subject.name}")
    title = f"evaluate {subject.name}"
    sample_shards(
        checkpoint, rows, folder / "greedy", run.sampler(0), seed=seed, title=f"{title}: greedy"
    )
    if subject.name != BASE:
        sampler = run.sampler(count, rewards=not subject.is_teacher)
        sample_shards(
            checkpoint, rows, folder / "fresh", sampler, seed=seed, title=f"{title}: sample"
        )
    if _has_own_samples(subject) and not (folder / "fixed.parquet").exists():
        write_rows(
            folder / "fixed.parquet", _fixed_rewards(run, checkpoint, f"{title}: fixed groups")
        )
    checkpoint.free()


def _fixed_rewards(run: RunContext, student: Checkpoint, title: str) -> list[Row]:
    """The student's rewards of the fixed groups."""
    groups, config = read_rows(groups_folder(run)), run.config
    prompts, responses = (
        [row["prompt_ids"] for row in groups],
        [row["completion_ids"] for row in groups],
    )
    with tqdm(
        total=sum(map(len, responses)), desc=title, unit="response", disable=config.disable_tqdm
    ) as bar:
        rewards = run.scores.rewards(student.model, prompts, responses, bar.update)
    return [
        {"prompt_id": row["prompt_id"], "student_rewards": found}
        for row, found in zip(groups, rewards, strict=True)
    ]


def _write(run: RunContext, subject: Subject) -> None:
    folder, groups = _work(run, subject), read_rows(groups_folder(run))
    greedy = read_rows(folder / "greedy")
    fresh = (
        groups
        if subject.name == BASE
        else read_rows(folder / ("fresh" if subject.is_teacher else "scored"))
    )
    measured: Row = {**measures.accuracies(greedy, fresh), **measures.lengths(greedy, fresh)}
    measured |= dict.fromkeys(
        ("kendall_tau", "top1", "ppd_loss", "fresh_kendall_tau", "fresh_top1")
    )
    rows: list[Row] = [
        {"prompt_id": row["prompt_id"], "greedy_text": row["completions"][0]} for row in greedy
    ]
    rewards: list[Any] = [None] * len(rows)
    losses: list[float | None] = [None] * len(rows)
    if not subject.is_teacher:
        teacher = [row["teacher_rewards"] for row in groups]
        rewards = [
            row["student_rewards"]
            for row in (groups if subject.name == BASE else read_rows(folder / "fixed.parquet"))
        ]
        losses = measures.losses(rewards, teacher, run.training)
        measured |= measures.agreement(rewards, teacher) | {
            "ppd_loss": measures.mean(loss for loss in losses if loss is not None)
        }
        fresh_agreement = measures.agreement(
            [row["student_rewards"] for row in fresh], [row["teacher_rewards"] for row in fresh]
        )
        measured |= {f"fresh_{name}": value for name, value in fresh_agreement.items()}
    for row, found, loss in zip(rows, rewards, losses, strict=True):
        row.update(student_rewards=found, ppd_loss=loss)
    write_rows(run.folder.evaluation(subject.name).with_suffix(".parquet"), rows)
    run.metrics.add(subject.round, 0, "evaluate", {"name": subject.name, **measured})
    write_json(
        run.folder.evaluation(subject.name),
        {"name": subject.name, "round": subject.round, "num_prompts": len(rows), **measured},
    )
