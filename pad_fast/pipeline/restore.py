"""What a run folder can make again from its other files: prompts, samples, lines of metrics.jsonl.

Whatever else is lost is made again by the phase that made it, see
:mod:`pad_fast.pipeline.finished`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from pad_fast.files.own_files import read_json
from pad_fast.files.stored_rows import Row, Rows
from pad_fast.pipeline.compared import folder_of, phase_of
from pad_fast.pipeline.parquet_rows import (
    read_metrics,
    read_rows,
    shard_index,
    shard_paths,
    write_rows,
)
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.sample.teacher_answers import sampled_alone
from pad_fast.pipeline.score.scorer import TEACHER_COLUMNS

logger = logging.getLogger("pad_fast")

NO_METRICS = ("round", "num_prompts", "intervals")  # keys of evaluation/NAME.json
PROMPTS = {"train": "prompts.parquet", "heldout": "heldout/prompts.parquet"}


def rows_digest(rows: Iterable[Row]) -> str:
    """A hash over the prompts of a run, which the manifest holds."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def lost_prompts(run: RunContext, manifest: Row) -> list[str]:
    """The files of prompts that the manifest counts and that are not there."""
    return [
        name
        for part, name in PROMPTS.items()
        if manifest["prompts"][part] and not (run.folder.root / name).exists()
    ]


def restore_prompts(run: RunContext, manifest: Row, parts: dict[str, Rows]) -> None:
    """Write the lost files of prompts again, from prompts that were read again.

    Raises:
        ValueError: these are not those that the run was started with.
    """
    for name in lost_prompts(run, manifest):
        part = next(part for part, path in PROMPTS.items() if path == name)
        if rows_digest(parts[part]) != manifest["prompts"]["digests"][part]:
            raise ValueError(
                f"{run.folder.root / name} is missing, and reading the prompts again gives other "
                "ones than the run was started with; put it back or give another output_dir"
            )
        logger.warning("%s was missing and is made again", run.folder.root / name)
        write_rows(run.folder.root / name, parts[part])


def restore_samples(scored: Path, samples: Path) -> None:
    """Write the missing shards of ``samples`` that ``scored`` holds with the teacher's columns."""
    for source in shard_paths(scored):
        target = samples / source.name
        if not target.exists():
            rows = read_rows(source)
            kept = [name for name in rows[0] if name not in TEACHER_COLUMNS]
            samples_of = [{name: row[name] for name in kept} for row in rows]
            write_rows(target, samples_of, sampling_metrics(sampled_alone(samples_of)))


def restore_metrics(run: RunContext) -> None:
    """Write the lines of metrics.jsonl that must have been there and are not.

    A shard carries what was measured of it, and another rank may have written it just before a
    kill. A file that is missing altogether is made again from all other files.
    """
    root, metrics = run.folder.root, run.metrics
    lost = not metrics.path.exists() and run.folder.has_metrics()
    if lost:
        logger.warning("%s was missing and is made again from the other files", metrics.path)
    add_shards(run, 0, "score", root / "heldout" / "groups")
    for folder in sorted(root.glob("round-*")):
        round = int(folder.name.removeprefix("round-"))
        for phase, name in (("sample", "samples"), ("score", "scores")):
            add_shards(run, round, phase, folder / name)
        if lost:
            _add_lost_samples(run, round, folder)
            _restore_training(run, folder, round, "train")
    if not lost:
        return
    for path in sorted((root / "validation").glob("*.json")):
        row = read_json(path)
        metrics.add(row["round"], 0, "validate", {"name": path.stem, row["metric"]: row["value"]})
    for name in run.config.methods:
        _restore_training(run, folder_of(root, name), 1, phase_of(name))
    _restore_training(run, run.folder.seqkd, run.config.rounds, "seqkd")
    for path in sorted((root / "evaluation").glob("*.json")):
        row = read_json(path)
        values = {name: value for name, value in row.items() if name not in NO_METRICS}
        metrics.add(row["round"], 0, "evaluate", values)


def add_shards(run: RunContext, round: int, phase: str, folder: Path) -> None:
    """Add the metrics that the shards of a folder carry, as far as they are not there yet."""
    for shard in shard_paths(folder):
        if (found := read_metrics(shard)) is not None:
            run.metrics.add(round, shard_index(shard), phase, found)


def _add_lost_samples(run: RunContext, round: int, folder: Path) -> None:
    """Add the metrics of samples that only scored shards still hold."""
    for shard in shard_paths(folder / "scores"):
        if not (folder / "samples" / shard.name).exists():
            found = sampling_metrics(sampled_alone(read_rows(shard)))
            run.metrics.add(round, shard_index(shard), "sample", found)


def _restore_training(run: RunContext, folder: Path, round: int, phase: str) -> None:
    """The lines of a training, from the state that was saved with its student or a checkpoint."""
    states = [folder / "student" / "trainer_state.json"]
    states += folder.glob("trainer/checkpoint-*/trainer_state.json")
    logs = [read_json(path)["log_history"] for path in states if path.exists()]
    for line in max(logs, key=len, default=[]):
        # The callback that writes the lines leaves total_flos out.
        values = {name: line[name] for name in line if name not in ("step", "total_flos")}
        run.metrics.add(round, line["step"], phase, values)
