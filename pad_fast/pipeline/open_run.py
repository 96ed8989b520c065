"""Opening a run: starting a new one, or resuming one where it was left.

Everything that can be checked before the first token is sampled is checked here.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pad_fast.device import default_device, on_cpu
from pad_fast.environment import decisive, shown, variables, versions
from pad_fast.files.checksums import file_digest, has_checksum
from pad_fast.files.own_files import write_json
from pad_fast.files.stored_rows import Row, RowFiles, Rows, column
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.chosen_batches import choose_batches
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.costs import recording
from pad_fast.pipeline.dry_build import check_hub, check_training
from pad_fast.pipeline.evaluate.heldout import groups_folder
from pad_fast.pipeline.finished import is_finished
from pad_fast.pipeline.folder_lock import locked
from pad_fast.pipeline.parquet_rows import keep_rows, shard_paths, write_rows
from pad_fast.pipeline.phases import PREPARE, TRAIN, changed_settings
from pad_fast.pipeline.preflight import (
    check_models,
    check_prompts,
    check_sources,
    fitting,
    read_split,
)
from pad_fast.pipeline.rank_checks import check_ranks, check_shared_folder
from pad_fast.pipeline.restore import (
    PROMPTS,
    lost_prompts,
    restore_metrics,
    restore_prompts,
    rows_digest,
)
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.given import is_given, without_responses
from pad_fast.pipeline.score.cache import check_writable
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.settings import Settings
from pad_fast.pipeline.step_size import PRODUCT
from pad_fast.pipeline.train.adapter import tell_of_rate
from pad_fast.report.wording import GIVEN, RATER, SAMPLED
from pad_fast.terminal import command_line

logger = logging.getLogger("pad_fast")

FORMAT = 2  # version of a run folder's layout


@contextlib.contextmanager
def open_run(settings: Settings, *, trains: bool = True) -> Iterator[RunContext]:
    """Start or resume a run, and hold its folder's lock inside the block.

    Args:
        settings: of the run.
        trains: whether a training follows, now or by a later command. What it needs is then built
            once, without the models.

    Raises:
        ValueError: prompts, models and settings do not fit together, the run folder was started
            with others, another process holds it, or nothing can be pushed although that is wanted.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_cpu(settings.on_cpu))
        run = RunContext(settings)
        if run.config.score_cache is not None:
            check_writable(Path(run.config.score_cache))
        check_ranks(run)
        if run.ranks.is_main:
            stack.enter_context(locked(run.folder.root))
            shutil.rmtree(run.folder.rows, ignore_errors=True)  # a killed command leaves it
            stack.callback(shutil.rmtree, run.folder.rows, ignore_errors=True)
            _check_or_prepare(run, trains)
        check_shared_folder(run)
        choose_batches(run)
        stack.enter_context(recording(run.folder.root, run.ranks))
        yield run
        run.ranks.leave()


def _check_or_prepare(run: RunContext, trains: bool) -> None:
    run.folder.check_manifest_is_not_lost()
    if trains:  # a run that is finished can still be pushed
        check_hub(run.training, run.config.hub_dataset_id, run.config.hub_dtype)
    if run.folder.manifest_path.exists():
        _check_unchanged(run)
        if trains and not is_finished(run, run.config.rounds):
            check_training(run)
    else:
        check_sources(run.config)
        _check_foreign_files(run)
        check_training(run)
        tell_of_rate(run.settings)
        _prepare(run)


def _prepare(run: RunContext) -> None:
    config, root = run.config, run.folder.root
    check_models(config, run.student(0), run.judge)
    longest: dict[str, int] = {}
    rows = _fitting_rows(run, longest)
    if not rows["train"]:
        raise ValueError("prompts: every one of them is too long")
    for part, name in PROMPTS.items():
        (root / name).unlink(missing_ok=True)  # left by a start that was stopped
        if rows[part]:
            write_rows(root / name, rows[part])
    environment = variables()
    if environment:
        logger.warning("the environment sets %s, which may change results", shown(environment))
    manifest = {
        "format": FORMAT,
        "created": run.started.isoformat(timespec="seconds"),
        "config": run.settings.flat(),
        "resolved": run.settings.resolved(run.training),
        "seeds": {
            "run": config.seed,
            **{
                f"round-{r:02d}": round_seed(config.seed, r, "train")
                for r in range(1, config.rounds + 1)
            },
        },
        "versions": versions(),
        "environment": environment,
        "machine": machine(),
        "models": {model.role: model.fingerprint() for model in _models(run)},
        "prompts": {
            **{part: len(rows[part]) for part in PROMPTS},
            "digests": {part: rows_digest(rows[part]) for part in PROMPTS},
            "files": _file_hashes(config),
            "longest": longest,  # in tokens of each model
        },
        "judge": _judge_of(run, rows["train"]),
        "fixed_groups": GIVEN if is_given(rows["heldout"]) else SAMPLED,
        "phases": {},
        "students": {},
    }
    write_json(run.folder.manifest_path, manifest)


def _judge_of(run: RunContext, rows: Rows) -> str:
    """Who scores the responses, in the words of the report."""
    if rows[0].get("scored"):  # all rows have scores, or none
        return RATER
    return "teacher" if run.judge is None else run.judge.role.replace("_", " ")


def _models(run: RunContext) -> list[Checkpoint]:
    """The models that a run begins with."""
    return [run.student(0), *([] if run.judge is None else [run.judge])]


def _check_foreign_files(run: RunContext) -> None:
    """Raise ValueError if the run's prompts would replace a file that is read or of somebody else.

    Those of a start that was stopped before its manifest was written are replaced.
    """
    for path in (run.folder.root / name for name in PROMPTS.values()):
        if not path.exists():
            continue
        if any(source.exists() and source.samefile(path) for source in _sources(run.config)):
            raise ValueError(
                f"output_dir: a run writes its prompts to {path}, which the settings name as their "
                "source; move that file or give another output_dir"
            )
        if not has_checksum(path):
            raise ValueError(
                f"output_dir: {path} is there and no run wrote it, and a run would replace it; "
                "move it or give another output_dir"
            )


def _fitting_rows(run: RunContext, longest: dict[str, int]) -> dict[str, Rows]:
    """The prompts of the run that fit both models, by their part; see :func:`fitting`."""
    models, limit = (run.student(0), run.judge), run.training.max_length
    keep = partial(keep_rows, RowFiles(run.folder.rows / "reading"))  # gone when nobody reads them
    parts = read_split(run.config, keep)
    for rows in parts:
        check_prompts(rows, *models)
    return {
        part: keep(without_responses(fitting(rows, run.config, *models, limit, longest)))
        for part, rows in zip(PROMPTS, parts, strict=True)
    }


def _check_unchanged(run: RunContext) -> None:
    """Raise ValueError unless what the folder holds was made with these settings and models."""
    manifest = run.folder.manifest()
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"output_dir: {run.folder.root} has format {manifest.get('format')}, and this version "
            f"reads format {FORMAT}; give another output_dir"
        )
    before, now = manifest["resolved"], run.settings.resolved(run.training)
    _check_environment(run, manifest)
    changed, begun = changed_settings(before, now), run.folder.begun()
    for name, phase in changed.items():
        if phase in begun:
            since = "was started" if phase == PREPARE.name else f"has begun to {phase}"
            remedy = "go on with the former or give another output_dir"
            if name == PRODUCT and run.config.prompts_per_step is None:
                remedy = (
                    f"set {PRODUCT} to {before[PRODUCT]}, which any number of processes may "
                    "divide, or start as many processes as before"
                )
            elif phase == TRAIN.name:
                remedy += _with_scores_of(run)
            raise ValueError(
                f"{name}: {run.folder.root} {since} with {before.get(name)!r}, "
                f"got {now.get(name)!r}; {remedy}"
            )
    for checkpoint in _models(run):
        if checkpoint.fingerprint() != manifest["models"].get(checkpoint.role):
            raise ValueError(
                f"{checkpoint.role}: {checkpoint.path} is not the model that {run.folder.root} was "
                "started with; give another output_dir"
            )
    for path, digest in _file_hashes(run.config).items():
        if manifest["prompts"]["files"].get(path, digest) != digest:
            raise ValueError(
                f"prompts: {path} is not the file that {run.folder.root} was started with; "
                "give another output_dir"
            )
    run.folder.check_students()
    if lost_prompts(run, manifest):
        restore_prompts(run, manifest, _fitting_rows(run, {}))
    restore_metrics(run)
    if changed:
        _check_changes(run)
    _record_changes(run, manifest, changed)


def _with_scores_of(run: RunContext) -> str:
    """The flags by which a run in another folder trains on this one's scores, in words.

    Empty if it would find them without flags, or if the rows hold answers of the teacher, which
    are not told from others then.
    """
    scores, groups = run.folder.round(1) / "scores", groups_folder(run)
    if run.config.responses or run.config.teacher_response != "none" or not shard_paths(scores):
        return ""
    words = ["--responses", str(scores)]
    if shard_paths(groups):
        words += ["--heldout", str(groups), "--heldout_split", "train"]
    return f", where {command_line(words)} takes over round 1's responses with their scores"


def _check_environment(run: RunContext, manifest: Row) -> None:
    """Raise ValueError if versions or environment differ from those of what the folder holds."""
    different = _environment_changes(manifest)
    if different and run.folder.begun() != {PREPARE.name} and not run.config.accept_environment:
        before, now = (
            shown({name: "not set" if pair[i] is None else pair[i] for name, pair in different})
            for i in (0, 1)
        )
        raise ValueError(
            f"environment: {run.folder.root} was made with {before}, and now it is {now}; go on "
            "with the former, give --accept_environment true, or give another output_dir"
        )


def _environment_changes(manifest: Row) -> list[tuple[str, tuple[Any, Any]]]:
    """The versions and variables that differ from the manifest's, with both values."""
    known = decisive(manifest["versions"], manifest["environment"])
    found = decisive(versions(), variables())
    return [
        (name, (known.get(name), found.get(name)))
        for name in sorted(known.keys() | found.keys())
        if known.get(name) != found.get(name)
    ]


def machine() -> Row:
    """What changes only the rounding: the device and the number of threads."""
    return {"device": default_device().type, "threads": torch.get_num_threads()}


def _check_changes(run: RunContext) -> None:
    """Raise ValueError unless changed settings fit what was prepared."""
    check_models(run.config, run.student(0), run.judge)
    limit = run.training.max_length
    longest = max(map(len, column(run.train_rows, "prompt_ids")))
    if limit is not None and longest >= limit:
        raise ValueError(
            f"max_length: must be more than the {longest} tokens of the longest prompt in "
            f"{run.folder.root}, got {limit}"
        )


def _record_changes(run: RunContext, manifest: Row, changed: dict[str, str | None]) -> None:
    """Record in the manifest what differs from it, with the time."""
    for phase in sorted({phase for phase in changed.values() if phase is not None}):
        run.metrics.forget(phase)  # its lines from before it was stopped
    before, now = manifest["resolved"], run.settings.resolved(run.training)
    different = {name: (before[name], now[name]) for name in changed}
    different |= dict(_environment_changes(manifest))
    if manifest["machine"] != machine():
        logger.warning(
            "the run was begun on %s, and now it is %s: sums may round in another way",
            shown(manifest["machine"]),
            shown(machine()),
        )
        different["machine"] = (manifest["machine"], machine())
    if not different:
        return
    change = {
        "at": _now(),
        "from": {name: pair[0] for name, pair in different.items()},
        "to": {name: pair[1] for name, pair in different.items()},
    }
    recorded = {
        "config": run.settings.flat(),
        "resolved": now,
        "versions": versions(),
        "environment": variables(),
        "machine": machine(),
        "changes": [*manifest.get("changes", []), change],
    }
    if TRAIN.name in changed.values():  # what no step was made with is chosen again
        recorded["chosen"] = {}
    write_json(run.folder.manifest_path, {**manifest, **recorded})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _file_hashes(config: RunConfig) -> dict[str, str]:
    return {str(path): file_digest(path) for path in _sources(config) if path.is_file()}


def _sources(config: RunConfig) -> list[Path]:
    """The files, or names of datasets, that a run reads prompts and responses from."""
    names = (config.prompts, config.responses, config.heldout)
    return [Path(str(name)) for name in names if name is not None]
