"""Evaluation on the held-out prompts: right answers, and rankings like the teacher's.

Rankings are compared on fixed groups, which the base student samples once and the teacher scores
once, so that all rounds are measured on the same responses. They are also compared on fresh
samples of each student, which change from round to round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

from pad_fast.evaluation import reported_metrics
from pad_fast.evaluation.evaluated_model import Evaluated, RewardPair
from pad_fast.evaluation.model_names import BASE, BY_PROMPT, TEACHER
from pad_fast.files.own_files import write_json
from pad_fast.files.stored_rows import RowFiles, Rows, changed, column
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.parquet_rows import keep_shards, read_rows, write_rows
from pad_fast.pipeline.restore import restore_samples
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample import given
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.sample.shards import (
    count_responses,
    sample_shards,
    shard_files,
    unfinished,
    without_result,
)
from pad_fast.pipeline.sample.teacher_answers import with_ids_of
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.shared_bar import SharedBar
from pad_fast.training.row_columns import as_counted

# What metrics read of a row, and what they read of the fixed groups.
RANKED = ("completion_ids", "student_rewards", "teacher_rewards")
MEASURED = ("prompt_id", "answer", "skill", "completions", "finish_reasons", *RANKED)


@dataclass(frozen=True)
class Subject:
    """A model to evaluate; see :mod:`pad_fast.evaluation.model_names` for its name.

    The base student's own samples are the fixed groups, unless these are ``given``. The teacher
    ``judges_itself`` where no answer is right or wrong: its mean reward is what students come to.
    """

    name: str
    round: int
    checkpoint: Checkpoint
    given: bool = False
    judges_itself: bool = False

    @property
    def is_teacher(self) -> bool:
        return self.name == TEACHER

    @property
    def is_base(self) -> bool:
        return self.name == BASE

    @property
    def has_scored_samples(self) -> bool:
        """Whether there are samples of its own, which the teacher or reward model scores."""
        if self.is_teacher:
            return self.judges_itself
        return not self.is_base or self.given

    @property
    def has_fixed_rewards(self) -> bool:
        """Whether its rewards of the fixed groups are in a file of their own."""
        return not self.is_teacher and not self.is_base


def sample_groups(run: RunContext) -> None:
    """Sample the responses of the fixed groups from the base student, unless they are given."""
    folder = run.folder.root / "heldout" / "samples"
    if given.is_given(run.heldout_rows):
        given.write_samples(
            run, run.heldout_rows, folder, title="held-out responses · student", rewards=True
        )
        return
    count = run.config.heldout_num_generations or 0
    if run.ranks.agree(unfinished(run.heldout_rows, folder, run.config.shard_size)):
        with run.engine(run.student(0)) as student:
            sample_shards(
                student,
                run.heldout_rows,
                folder,
                run.sampler(count, rewards=True),
                seed=round_seed(run.config.seed, 0, "sample"),
                title="held-out · sample",
                ranks=run.workers(run.student(0)),
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
    names = run.ranks.agree(
        [
            subject.name
            for subject in subjects
            if not all(path.exists() for path in evaluation_files(run, subject))
        ]
    )
    todo = [subject for subject in subjects if subject.name in names]
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
        run.ranks.on_main(partial(_write, run, subject))


def evaluation_files(run: RunContext, subject: Subject) -> list[Path]:
    """The files that the evaluation of one model leaves."""
    folder, summary = _samples_folder(run, subject), run.folder.evaluation(subject.name)
    parts = ["greedy"]
    parts += ["fresh"] if subject.is_teacher or subject.has_scored_samples else []
    parts += ["scored"] if subject.has_scored_samples and run.config.has_judge else []
    parts += ["fixed"] if subject.has_fixed_rewards else []
    return [summary, summary.with_suffix(".parquet")] + [
        path
        for part in parts
        for path in shard_files(len(run.heldout_rows), folder / part, run.config.shard_size)
    ]


def _samples_folder(run: RunContext, subject: Subject) -> Path:
    return run.folder.root / "evaluation" / "samples" / subject.name


def _sample(run: RunContext, subject: Subject) -> None:
    """A model's greedy responses, its samples, and its rewards of the fixed groups."""
    folder, rows = _samples_folder(run, subject), run.heldout_rows
    run.ranks.on_main(lambda: restore_samples(folder / "scored", folder / "fresh"))
    own = subject.is_teacher or subject.has_scored_samples
    parts = ["greedy"] + ["fresh"] * own + ["fixed"] * subject.has_fixed_rewards
    if not run.ranks.agree(
        any(unfinished(rows, folder / part, run.config.shard_size) for part in parts)
    ):
        return
    if subject.is_teacher:
        rows = changed(rows, partial(with_ids_of, subject.checkpoint))
    title = f"evaluate {subject.name}"
    seed = round_seed(run.config.seed, subject.round, title)
    with run.engine(subject.checkpoint) as model:
        ranks = run.workers(subject.checkpoint)
        sampled = partial(sample_shards, model, rows, seed=seed, ranks=ranks)
        sampled(folder / "greedy", run.sampler(0), title=f"{title}: greedy")
        if own:
            count = run.config.heldout_num_generations or 0
            fresh = run.sampler(count, rewards=not subject.is_teacher)
            sampled(folder / "fresh", fresh, title=f"{title}: sample")
        if subject.has_fixed_rewards:
            _write_fixed_rewards(run, subject, model, f"{title}: fixed groups")


def _write_fixed_rewards(run: RunContext, subject: Subject, student: Engine, title: str) -> None:
    """Write the student's rewards of the fixed groups, shard by shard."""
    folder, ranks = _samples_folder(run, subject) / "fixed", run.workers(subject.checkpoint)
    todo = without_result(groups_folder(run), folder, ranks)
    total, quiet = count_responses(todo), run.config.disable_tqdm or not todo
    with (
        measured(title, "response", ranks) as work,
        SharedBar(ranks, total, title, "response", quiet=quiet) as bar,
    ):
        for source in ranks.share(todo):
            rows = read_rows(source)
            prompts = [row["prompt_ids"] for row in rows]
            responses = [row["completion_ids"] for row in rows]
            rewards = student.rewards(prompts, responses, bar.update)
            tokens = sum(len(ids) for group in responses for ids in group)
            work.add(sum(map(len, responses)), tokens)
            write_rows(
                folder / source.name,
                [
                    {"prompt_id": row["prompt_id"], "student_rewards": found}
                    for row, found in zip(rows, rewards, strict=True)
                ],
            )


def _write(run: RunContext, subject: Subject) -> None:
    """A model's numbers as JSON, and what they are made of, a row for each prompt, as Parquet.

    What is read of the shards lies on disk until then.
    """
    files = RowFiles(run.folder.rows / f"evaluate-{subject.name}")
    evaluated = _read(run, subject, files)
    unknown = repeat(None)
    rewards = evaluated.fixed.student if evaluated.fixed else unknown
    by_prompt = reported_metrics.values_by_prompt(evaluated)
    rows = (
        {
            "prompt_id": row["prompt_id"],
            "greedy_text": row["completions"][0],
            "student_rewards": found,
            "ppd_loss": loss,
            **{f"{BY_PROMPT}{key}": _known(values[place]) for key, values in by_prompt.items()},
        }
        for place, (row, found, loss) in enumerate(
            zip(evaluated.greedy, rewards, evaluated.losses or unknown, strict=False)
        )
    )
    metrics = reported_metrics.measure(evaluated, by_prompt)
    path = run.folder.evaluation(subject.name)
    write_rows(path.with_suffix(".parquet"), rows)
    run.metrics.add(subject.round, 0, "evaluate", {"name": subject.name, **metrics})
    facts = {"name": subject.name, "round": subject.round, "num_prompts": len(evaluated.greedy)}
    intervals = reported_metrics.intervals(by_prompt)
    write_json(path, {**facts, **metrics, "intervals": intervals})
    files.remove()


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read(run: RunContext, subject: Subject, files: RowFiles) -> Evaluated:
    """What was sampled and scored of a model."""
    folder, rule = _samples_folder(run, subject), run.config.answer_rule
    own_groups = not subject.is_teacher and not subject.has_scored_samples
    groups = keep_shards(files, groups_folder(run), MEASURED if own_groups else RANKED)
    greedy = keep_shards(files, folder / "greedy", MEASURED)
    if subject.is_teacher:
        judged = subject.judges_itself
        own = keep_shards(files, folder / ("scored" if judged else "fresh"), MEASURED)
        rewards = column(own, "teacher_rewards") if judged else ()
        return Evaluated(greedy, own, sampling_metrics(own), judged=rewards, rule=rule)
    rewarded = groups
    if subject.has_fixed_rewards:
        rewarded = keep_shards(files, folder / "fixed", ("student_rewards",))
    fixed = _pair(run, rewarded, groups)
    sampled = groups
    fresh: RewardPair | None = fixed
    if subject.has_scored_samples:
        has_judge = run.config.has_judge
        sampled = keep_shards(files, folder / ("scored" if has_judge else "fresh"), MEASURED)
        fresh = _pair(run, sampled, sampled) if has_judge else None
    losses = prompt_losses(fixed, run.chosen_training, column(groups, "student_rewards"))
    rewards = column(sampled, "teacher_rewards") if fresh is not None else ()
    return Evaluated(
        greedy, sampled, sampling_metrics(sampled), fixed, fresh, losses, rewards, rule
    )


def _pair(run: RunContext, students: Rows, teachers: Rows) -> RewardPair:
    """The rewards to compare, of equal responses as often as the training counts them."""
    counted = changed(teachers, partial(as_counted, repeats=run.training.repeats))
    rewards: Any = changed(counted, itemgetter("teacher_rewards"))
    return RewardPair(column(students, "student_rewards"), rewards)
