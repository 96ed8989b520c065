"""The rounds of a run. A phase does what is missing and leaves what is there.

The functions :func:`sample`, :func:`score`, :func:`train` and :func:`evaluate` do the phases of
:data:`pad_fast.pipeline.phases.PHASES`, as :data:`PHASE_FUNCTIONS` says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pad_fast.device import release_unused_memory
from pad_fast.evaluation import model_names
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.evaluate import heldout, validation
from pad_fast.pipeline.evaluate.benchmarks import RunBenchmarks
from pad_fast.pipeline.evaluate.best_round import announce_stop, chosen_student
from pad_fast.pipeline.evaluate.summary import print_table
from pad_fast.pipeline.findings.first_shard import of_samples, of_scores, warn
from pad_fast.pipeline.finished import (
    compared_student,
    is_finished,
    is_trained,
    seqkd_student,
    subjects,
    warn_of_lost_files,
    with_baseline,
)
from pad_fast.pipeline.idle_gpus import tell_of_idle_gpus
from pad_fast.pipeline.open_run import open_run
from pad_fast.pipeline.phases import EVALUATE, PHASES, SAMPLE, SCORE, TRAIN
from pad_fast.pipeline.publish.model_card import update_card
from pad_fast.pipeline.publish.upload import push
from pad_fast.pipeline.restore import add_shards, restore_samples
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample import given
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.sample.teacher_answers import (
    sample_answers_of_round,
    teacher_answers,
    with_teacher_answers,
)
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.settings import Settings
from pad_fast.pipeline.train.compile_ahead import compile_ahead
from pad_fast.pipeline.train.saved_student import drop_checkpoints
from pad_fast.pipeline.train.seqkd import sample_answers, train_seqkd
from pad_fast.pipeline.train.train_round import train_compared, train_round
from pad_fast.terminal import say

logger = logging.getLogger("pad_fast")

BETWEEN_REPORTS = 30.0  # seconds; writing one takes a few


def sample(run: RunContext, round: int) -> None:
    """Sample the round's responses from the student of the round before.

    The first round begins with the responses to the held-out prompts, from the base student. Given
    responses take the places of its samples; later rounds sample.
    """
    if round == 1:
        groups = heldout.groups_folder(run)
        run.ranks.on_main(lambda: restore_samples(groups, groups.parent / "samples"))
        heldout.sample_groups(run)
        if run.config.student_server:  # later the servers have other weights
            heldout.sample_base(run)
            validation.sample_validation(run, 0)
    folder, rows = run.folder.round(round) / "samples", run.round_rows(round)
    run.ranks.on_main(lambda: restore_samples(folder.parent / "scores", folder))
    sample_answers_of_round(run, round)
    if not run.ranks.agree(unfinished(rows, folder, run.config.shard_size)):
        return
    on_shard = partial(_look_at_shard, run, round, "sample")
    if round == 1 and given.is_given(rows):
        given.write_samples(run, rows, folder, title="given responses · student", on_shard=on_shard)
        add_shards(run, round, "sample", folder)
        _print_means(run, round, "sample")
        return
    sampler = run.sampler(run.config.num_generations, rewards=True)
    teachers = teacher_answers(run, round)
    with run.engine(run.student(round - 1)) as student:
        if teachers:
            with_answers = partial(with_teacher_answers, run, student, teachers)
            sampler = dataclasses.replace(sampler, complete=with_answers)
        sample_shards(
            student,
            rows,
            folder,
            sampler,
            seed=round_seed(run.config.seed, round, "sample"),
            title=_title(run, round, "sample"),
            on_shard=on_shard,
            ranks=run.workers(run.student(round - 1)),
        )
    add_shards(run, round, "sample", folder)
    _print_means(run, round, "sample")


def score(run: RunContext, round: int) -> None:
    """Score the round's responses with the teacher.

    The first round begins with the responses to the held-out prompts.
    """
    folder, rows, size = run.folder.round(round), run.round_rows(round), run.config.shard_size
    if run.ranks.agree(unfinished(rows, folder / "samples", size)):
        raise ValueError(f"score: round {round} is not sampled yet; give `pad-fast sample` first")
    groups = heldout.groups_folder(run)
    if round == 1:
        run.ranks.on_main(partial(_keep_given_scores, run, groups, folder))
    todo = unfinished(rows, folder / "scores", size) or unfinished(run.heldout_rows, groups, size)
    if not run.ranks.agree(todo):
        return
    with run.scorer() as scorer:
        if round == 1 and run.heldout_rows:
            scorer.score_shards(
                groups.parent / "samples",
                groups,
                run.config.heldout_num_generations or 0,
                title="held-out · teacher",
                on_shard=partial(_look_at_shard, run, 0, "score"),
            )
        scorer.score_shards(
            folder / "samples",
            folder / "scores",
            run.config.responses_per_prompt,
            title=_title(run, round, "teacher"),
            on_shard=partial(_look_at_shard, run, round, "score"),
        )
    add_shards(run, 0, "score", groups)
    add_shards(run, round, "score", folder / "scores")
    _print_means(run, round, "score")


def _keep_given_scores(run: RunContext, groups: Path, folder: Path) -> None:
    """Write the scored shards of responses whose scores are given."""
    given.write_scores(groups.parent / "samples", groups)
    on_shard = partial(_look_at_shard, run, 1, "score")
    given.write_scores(folder / "samples", folder / "scores", on_shard)


def train(run: RunContext, round: int) -> None:
    """Train the round's student and the methods beside it, after the last round the baseline."""
    rows, scores = run.round_rows(round), run.folder.round(round) / "scores"
    if run.ranks.agree(unfinished(rows, scores, run.config.shard_size)):
        raise ValueError(f"train: round {round} is not scored yet; give `pad-fast score` first")
    if run.ranks.agree(not run.folder.student(round).exists()):
        train_round(run, round)
        release_unused_memory()
    keep = partial(_keep_student, run, round)
    run.ranks.on_main(partial(keep, run.folder.student(round), model_names.student(round)))
    for name in run.config.methods:
        if run.ranks.agree(not compared_student(run, name).exists()):
            train_compared(run, name)
            release_unused_memory()
        run.ranks.on_main(partial(keep, compared_student(run, name), name))
    if run.ranks.agree(with_baseline(run, round)):
        sample_answers(run, round)
        if run.ranks.agree(not seqkd_student(run).exists()):
            train_seqkd(run, round)
            release_unused_memory()
        run.ranks.on_main(partial(keep, seqkd_student(run), model_names.SEQKD))


def evaluate(run: RunContext, round: int) -> None:
    """Evaluate the round's student on the held-out prompts, and ask it the benchmarks.

    The first round also evaluates the teacher and the base student, the last one the baseline.
    """
    if not run.ranks.agree(is_trained(run, round)):
        raise ValueError(f"evaluate: round {round} is not trained yet; give `pad-fast train` first")
    # Before the validation, which may make the round the last one.
    models = subjects(run, round, run.ranks.agree(with_baseline(run, round)))
    validation.validate(run, round)
    if run.heldout_rows:
        heldout.evaluate(run, models)
    run.ranks.on_main(lambda: RunBenchmarks(run).do(models))
    student = run.folder.student(round)
    run.ranks.on_main(lambda: update_card(run, student, model_names.student(round)))


PHASE_FUNCTIONS: dict[str, Callable[[RunContext, int], None]] = {
    SAMPLE.name: sample,
    SCORE.name: score,
    TRAIN.name: train,
    EVALUATE.name: evaluate,
}


def run_phase(settings: Settings, phase: str) -> None:
    """Do one phase of the first round that is not finished."""
    with _opened(settings, trains=phase != EVALUATE.name) as run:
        tell_of_idle_gpus(run.config)
        last = run.ranks.agree(validation.last_round(run))
        left = (r for r in range(1, last + 1) if not is_finished(run, r))
        round = run.ranks.agree(next(left, None))
        if round is None:
            more = "rounds" if last == run.config.rounds else "patience"
            print(f"{phase}: all {last} rounds are finished; raise {more} to go on")
            return
        if phase == TRAIN.name:
            compile_ahead(run)  # while the student is loaded
        else:
            run.try_servers()
        _do(run, phase, round)
        if phase == PHASES[-1].name and run.ranks.is_main:
            print_table(run.folder.root)


def run_all(settings: Settings) -> Path:
    """Do every phase of every round that is not done yet, then write the report.

    Returns:
        The report's path.
    """
    with _opened(settings) as run:
        tell_of_idle_gpus(run.config)
        finished = all(is_finished(run, round) for round in range(1, run.config.rounds + 1))
        if not run.ranks.agree(finished):
            run.try_servers()
            compile_ahead(run)
        for round in range(1, run.config.rounds + 1):
            _do_round(run, round)
            if round == run.ranks.agree(validation.last_round(run)) < run.config.rounds:
                run.ranks.on_main(partial(announce_stop, run, round))
                _do_round(run, round)  # now it is the last one, which the baseline follows
                break
        run.ranks.on_main(partial(_conclude, run))
        return run.folder.report


def _do(run: RunContext, phase: str, round: int) -> None:
    """Do a phase on all ranks, and record in the manifest that it is finished."""
    PHASE_FUNCTIONS[phase](run, round)
    run.engines.close()
    run.ranks.on_main(partial(_finish, run, f"round-{round:02d}/{phase}"))


def _finish(run: RunContext, phase: str) -> None:
    """Record a finished phase, and bring the report up to date unless that was done just now."""
    run.folder.finished(phase)
    if time.monotonic() - run.reported < BETWEEN_REPORTS:
        return
    try:
        _report(run, final=False)
    except Exception as error:  # hours of work must not end for a page that is written again
        logger.warning("the report could not be brought up to date: %s", error)
    run.reported = time.monotonic()


def _conclude(run: RunContext) -> None:
    """Write the report, and print what a run prints last."""
    student = chosen_student(run)  # the report says which round is the best
    report = _report(run)
    print_table(run.folder.root)
    print(f"student  {student}\nreport   {report}")
    if run.training.push_to_hub:
        for address in push(run, student):
            print(f"pushed   {address}")


def _do_round(run: RunContext, round: int) -> None:
    """Do what is missing of every phase of a round."""
    for phase in PHASES:
        _do(run, phase.name, round)


def write_report(settings: Settings) -> Path:
    """Write the report on what the run has so far.

    Returns:
        The report's path.
    """
    with _opened(settings, trains=False) as run:
        report = _report(run)
        print(f"report   {report}")
        return report


def _report(run: RunContext, *, final: bool = True) -> Path:
    from pad_fast.report import write_report

    path = write_report(run.folder.root)
    if final:
        run.folder.finished("report")
    return path


@contextlib.contextmanager
def _opened(settings: Settings, *, trains: bool = True) -> Iterator[RunContext]:
    """The run, after a look for files that were lost."""
    with open_run(settings, trains=trains) as run:
        if run.ranks.is_main:
            warn_of_lost_files(run)
        # A wrong file of questions has to fail now.
        run.ranks.on_main(lambda: RunBenchmarks(run).asked)
        try:
            yield run
        finally:
            run.engines.close()


def _keep_student(run: RunContext, round: int, folder: Path, name: str) -> None:
    """Record a trained student, which later files may come from, and remove its checkpoints."""
    later = (run.folder.evaluation(name), run.folder.round(round + 1) / "samples")
    run.folder.record_student(folder, any(path.exists() for path in later))
    drop_checkpoints(folder.parent / "trainer")


def _title(run: RunContext, round: int, phase: str) -> str:
    return f"round {round}/{run.config.rounds} · {phase}"


def _print_means(run: RunContext, round: int, phase: str) -> None:
    if not run.ranks.is_main:
        return
    means = run.metrics.means(round, phase)
    values = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
    say(f"{_title(run, round, phase)}: {values}")


def _look_at_shard(
    run: RunContext, round: int, phase: str, shard: int, rows: Sequence[Row], values: Row
) -> None:
    """Add a shard's metrics, and warn of what the first one shows."""
    run.metrics.add(round, shard, phase, values)
    if (round, shard) == (1, 0):
        found = (
            of_samples(run, rows, len(run.heldout_rows))
            if phase == SAMPLE.name
            else of_scores(run, rows, values)
        )
        warn(found, _title(run, round, phase))
