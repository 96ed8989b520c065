"""The files that finished phases leave, so that a run notices when one of them is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from pad_fast.evaluation import model_names
from pad_fast.pipeline.compared import folder_of
from pad_fast.pipeline.evaluate import heldout, validation
from pad_fast.pipeline.evaluate.benchmarks import RunBenchmarks
from pad_fast.pipeline.evaluate.heldout import Subject
from pad_fast.pipeline.phases import EVALUATE, PHASES, SAMPLE, SCORE, TRAIN
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.shards import shard_files
from pad_fast.pipeline.sample.teacher_answers import answers_folder, unanswered

logger = logging.getLogger("pad_fast")


def warn_of_lost_files(run: RunContext) -> None:
    """Name the files that phases left according to the manifest, and that are not there.

    The phase that made a file makes it again when it is done next.
    """
    lost = list(lost_files(run))
    for path in lost[:5]:
        logger.warning("%s was made and is missing; `pad-fast run` makes it again", path)
    if len(lost) > 5:
        logger.warning("so are %d more files", len(lost) - 5)


def lost_files(run: RunContext) -> Iterator[Path]:
    """The files of the phases that the manifest calls finished which are missing."""
    phases = run.folder.manifest()["phases"]
    for round in range(1, run.config.rounds + 1):
        for phase in PHASES:
            if f"round-{round:02d}/{phase.name}" in phases:
                files = phase_files(run, round, phase.name)
                yield from (path for path in files if not path.exists())


def is_finished(run: RunContext, round: int) -> bool:
    """Whether every phase of a round has left its files, and every benchmark its result."""
    if is_trained(run, round) and RunBenchmarks(run).missing(subjects(run, round)):
        return False
    return all(path.exists() for phase in PHASES for path in phase_files(run, round, phase.name))


def phase_files(run: RunContext, round: int, phase: str) -> Iterator[Path]:
    """The files and folders that a phase of a round leaves."""
    if phase == SAMPLE.name:
        yield from _shards(run, len(run.round_places(round)), run.folder.round(round) / "samples")
        if run.config.teacher_response != "none":
            yield from _shards(run, len(unanswered(run, round)), answers_folder(run, round))
        if round == 1:
            yield from _shards(run, len(run.heldout_rows), run.folder.root / "heldout" / "samples")
    elif phase == SCORE.name:
        yield from _shards(run, len(run.round_places(round)), run.folder.round(round) / "scores")
        if round == 1:
            yield from _shards(run, len(run.heldout_rows), heldout.groups_folder(run))
    elif phase == TRAIN.name:
        yield from students(run, round)
        if with_baseline(run, round):
            yield from _shards(run, len(run.places_until(round)), run.folder.seqkd / "answers")
    elif phase == EVALUATE.name:
        yield from validation.validation_files(run, round)
        for subject in subjects(run, round) if run.heldout_rows else ():
            yield from heldout.evaluation_files(run, subject)


def _shards(run: RunContext, count: int, folder: Path) -> Iterator[Path]:
    return shard_files(count, folder, run.config.shard_size)


def subjects(run: RunContext, round: int, baseline: bool | None = None) -> list[Subject]:
    """The models that are evaluated with a round, and asked the benchmarks.

    Args:
        run: the run.
        round: the round.
        baseline: whether the baseline is among them; by default :func:`with_baseline` says it.
    """
    baseline = with_baseline(run, round) if baseline is None else baseline
    found = [Subject(model_names.student(round), round, run.student(round))]
    if round == 1:
        found.insert(0, heldout.base(run))
        if run.config.teacher:
            judged = not run.has_answers  # else its right answers say what it can do
            found.insert(0, Subject(model_names.TEACHER, 0, run.teacher, judges_itself=judged))
    if baseline:
        found.append(Subject(model_names.SEQKD, round, run.trained(seqkd_student(run))))
    for name in run.config.methods:
        found.append(Subject(name, round, run.trained(compared_student(run, name))))
    return found


def is_trained(run: RunContext, round: int) -> bool:
    """Whether a round has its student, and the last one those of the baseline and of methods."""
    return all(path.exists() for path in students(run, round))


def students(run: RunContext, round: int) -> list[Path]:
    """The folders of the students that a round trains."""
    found = [run.folder.student(round)]
    found += [seqkd_student(run)] if with_baseline(run, round) else []
    return [*found, *(compared_student(run, name) for name in run.config.methods)]


def with_baseline(run: RunContext, round: int) -> bool:
    """Whether the baseline is trained after this round."""
    return run.config.baseline == "seqkd" and round == validation.last_round(run)


def compared_student(run: RunContext, name: str) -> Path:
    """The folder of the student of a method that is compared with the run's own."""
    return folder_of(run.folder.root, name) / "student"


def seqkd_student(run: RunContext) -> Path:
    """The folder of the baseline's student."""
    return run.folder.seqkd / "student"
