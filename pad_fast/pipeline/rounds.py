"""Rounds and phases: sample, score, train, evaluate, report. A phase does what is missing and leaves what is there."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import Settings
from pad_fast.pipeline.evaluate import heldout
from pad_fast.pipeline.evaluate.heldout import Subject
from pad_fast.pipeline.evaluate.summary import print_table
from pad_fast.pipeline.open_run import open_run
from pad_fast.pipeline.run import Run, round_seed
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.train.seqkd import train_seqkd
from pad_fast.pipeline.train.train_round import drop_checkpoints, train_round

logger = logging.getLogger("pad_fast")


def sample(run: Run, round: int) -> None:
    """The round's responses, from the student of the round before; first of all the held-out groups, from the base student."""
    if round == 1:
        heldout.sample_groups(run)
    folder, rows = run.folder.round(round) / "samples", run.round_rows(round)
    if unfinished(rows, folder, run.config.shard_size):
        student, sampler = (
            run.student(round - 1),
            run.sampler(run.config.num_generations, rewards=True),
        )
        seed, note = (
            round_seed(run.config.seed, round, "sample"),
            partial(_note, run, round, "sample"),
        )
        sample_shards(
            student,
            rows,
            folder,
            sampler,
            seed=seed,
            title=_title(run, round, "sample"),
            on_shard=note,
        )
        student.free()
        _tell(run, round, "sample")


def score(run: Run, round: int) -> None:
    """The teacher's calibrated rewards of the round's responses, and first of the held-out groups'."""
    folder, rows, size = run.folder.round(round), run.round_rows(round), run.config.shard_size
    if unfinished(rows, folder / "samples", size):
        raise ValueError(f"score: round {round} is not sampled yet; give `pad-fast sample` first")
    groups = heldout.groups_folder(run)
    if not unfinished(rows, folder / "scores", size) and not unfinished(
        run.heldout_rows, groups, size
    ):
        return
    with run.scorer() as scorer:
        if round == 1 and run.heldout_rows:
            count = run.config.heldout_num_generations or 0
            note = partial(_note, run, 0, "score")
            scorer.score_shards(
                groups.parent / "samples", groups, count, title="held-out · teacher", on_shard=note
            )
        note = partial(_note, run, round, "score")
        title = _title(run, round, "teacher")
        scorer.score_shards(
            folder / "samples",
            folder / "scores",
            run.config.num_generations,
            title=title,
            on_shard=note,
        )
    _tell(run, round, "score")


def train(run: Run, round: int) -> None:
    """The round's student; after the last round the baseline as well."""
    if unfinished(run.round_rows(round), run.folder.round(round) / "scores", run.config.shard_size):
        raise ValueError(f"train: round {round} is not scored yet; give `pad-fast score` first")
    if not run.folder.student(round).exists():
        train_round(run, round)
    drop_checkpoints(run.folder.round(round) / "trainer")
    if _with_baseline(run, round):
        if not _seqkd_student(run).exists():
            train_seqkd(run)
        drop_checkpoints(run.folder.root / "seqkd" / "trainer")


def evaluate(run: Run, round: int) -> None:
    """The round's student on the held-out prompts; with the first round the teacher and the base student, with the last the baseline."""
    if not _trained(run, round):
        raise ValueError(f"evaluate: round {round} is not trained yet; give `pad-fast train` first")
    if run.heldout_rows:
        heldout.evaluate(run, _subjects(run, round))


PHASES = {"sample": sample, "score": score, "train": train, "evaluate": evaluate}


def run_phase(settings: Settings, phase: str) -> None:
    """One phase of the next unfinished round."""
    with open_run(settings) as run:
        round = next((r for r in range(1, run.config.rounds + 1) if not _finished(run, r)), None)
        if round is None:
            print(f"{phase}: all {run.config.rounds} rounds are finished; raise rounds to go on")
            return
        PHASES[phase](run, round)
        run.folder.finished(f"round-{round:02d}/{phase}")
        if phase == "evaluate":
            print_table(run.folder.root)


def run_all(settings: Settings) -> Path:
    """Every phase of every round that is not done yet, then the report; gives the report's path."""
    with open_run(settings) as run:
        for round in range(1, run.config.rounds + 1):
            for name, phase in PHASES.items():
                phase(run, round)
                run.folder.finished(f"round-{round:02d}/{name}")
        report = _report(run)
        print_table(run.folder.root)
        print(f"student  {run.folder.student(run.config.rounds)}\nreport   {report}")
        return report


def write_report(settings: Settings) -> Path:
    """The report on what is there so far."""
    with open_run(settings) as run:
        report = _report(run)
        print(f"report   {report}")
        return report


def _report(run: Run) -> Path:
    from pad_fast.report import write_report

    path = write_report(run.folder.root)
    run.folder.finished("report")
    return path


def _subjects(run: Run, round: int) -> list[Subject]:
    subjects = [Subject(f"student-{round:02d}", round, run.student(round))]
    if round == 1:
        subjects.insert(0, Subject(heldout.BASE, 0, run.student(0)))
        if run.has_answers:
            subjects.insert(0, Subject("teacher", 0, run.teacher))
    if _with_baseline(run, round):
        subjects.append(
            Subject(
                "seqkd",
                round,
                Checkpoint("student", str(_seqkd_student(run)), dtype=run.config.dtype),
            )
        )
    return subjects


def _finished(run: Run, round: int) -> bool:
    if not run.heldout_rows:
        return _trained(run, round)
    return all(run.folder.evaluation(subject.name).exists() for subject in _subjects(run, round))


def _trained(run: Run, round: int) -> bool:
    return run.folder.student(round).exists() and (
        not _with_baseline(run, round) or _seqkd_student(run).exists()
    )


def _with_baseline(run: Run, round: int) -> bool:
    return run.config.baseline == "seqkd" and round == run.config.rounds


def _seqkd_student(run: Run) -> Path:
    return run.folder.root / "seqkd" / "student"


def _title(run: Run, round: int, phase: str) -> str:
    return f"round {round}/{run.config.rounds} · {phase}"


def _tell(run: Run, round: int, phase: str) -> None:
    means = run.metrics.means(round, phase)
    print(
        f"{_title(run, round, phase)}: {', '.join(f'{name} {value:.3g}' for name, value in means.items())}"
    )


def _note(run: Run, round: int, phase: str, shard: int, values: dict[str, object]) -> None:
    run.metrics.add(round, shard, phase, values)
