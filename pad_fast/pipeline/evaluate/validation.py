"""A part of the training prompts that no round trains on: which round is the best, when to stop.

Each student answers these prompts greedily. The measure is the share of right answers where the
prompts have answers, and else the teacher's mean reward of the answers. Held-out prompts are left
alone: what they measure would be too good for a round that was chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pad_fast.evaluation import model_names
from pad_fast.evaluation.evaluated_model import accuracy_by_prompt, mean
from pad_fast.evaluation.intervals import mean_interval
from pad_fast.files.own_files import read_json, write_json
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.parquet_rows import iter_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.seeds import round_seed

ACCURACY, REWARD = "greedy_accuracy", "teacher_reward"


def validation_file(run: RunContext, round: int) -> Path:
    """The file with the measure of the student after a round; round 0 is the base student."""
    return run.folder.root / "validation" / f"{model_names.student(round)}.json"


def validation_files(run: RunContext, round: int) -> list[Path]:
    """The files that the validation of a round leaves; the first one measures the base too."""
    if not run.validation_rows:
        return []
    return [validation_file(run, each) for each in ((0, 1) if round == 1 else (round,))]


def sample_validation(run: RunContext, round: int) -> Path:
    """Write the greedy answers of the student after a round that are missing; their folder."""
    name, rows = model_names.student(round), run.validation_rows
    folder = run.folder.root / "validation" / "samples" / name
    if run.ranks.agree(unfinished(rows, folder / "greedy", run.config.shard_size)):
        title, ranks = f"validate {name}", run.workers(run.student(round))
        sampled = partial(
            sample_shards, seed=round_seed(run.config.seed, round, title), title=title, ranks=ranks
        )
        with run.engine(run.student(round)) as student:
            sampled(student, rows, folder / "greedy", run.sampler(0))
    return folder


def validate(run: RunContext, round: int) -> None:
    """Measure the student after a round, and after the first one the base student too."""
    rounds = (0, 1) if round == 1 else (round,)
    for each in rounds if run.validation_rows else ():
        path = validation_file(run, each)
        if run.ranks.agree(path.exists()):
            continue
        folder = sample_validation(run, each)
        greedy, rule = folder / "greedy", run.config.answer_rule
        values, metric = list(accuracy_by_prompt(iter_rows(greedy), rule)), ACCURACY
        if run.ranks.agree(all(value is None for value in values)):
            values, metric = _teacher_rewards(run, folder), REWARD
        value = mean(value for value in values if value is not None)
        found: Row = {"round": each, "metric": metric, "value": value}
        found["interval"] = mean_interval(np.array(values, np.float64))  # None becomes NaN
        run.metrics.add(each, 0, "validate", {"name": path.stem, metric: value})
        found["num_prompts"] = len(run.validation_rows)
        run.ranks.on_main(partial(write_json, path, found))


def _teacher_rewards(run: RunContext, folder: Path) -> list[float | None]:
    """The reward of each answer in ``folder``; None for one that the teacher cannot read."""
    with run.scorer() as scorer:
        title = f"validate {folder.name}"
        scorer.score_shards(folder / "greedy", folder / "scored", 1, title=title)
    return [reward for row in iter_rows(folder / "scored") for reward in row["teacher_rewards"]]


def values_of_rounds(run: RunContext) -> list[float | None]:
    """The measure of each round that was validated, the base student's first."""
    found: list[float | None] = []
    while run.validation_rows and (path := validation_file(run, len(found))).exists():
        found.append(read_json(path)["value"])
    return found


def best_round(values: Sequence[float | None]) -> int | None:
    """The first of the trained rounds with the largest measure; None if none was measured.

    Example:
        >>> best_round([0.5, 0.6, 0.7, 0.7]), best_round([0.5])
        (2, None)
    """
    known = [(value, -round) for round, value in enumerate(values) if round and value is not None]
    return -max(known)[1] if known else None


def stopped_round(values: Sequence[float | None], patience: int) -> int | None:
    """The round after which a run stops, since the last ``patience`` did not improve; None: none.

    A round improves if it is above all before it, the base student included.

    Example:
        >>> stopped_round([0.5, 0.6, 0.6, 0.59, 0.7], patience=2)
        3
    """
    best, without = float("-inf"), 0
    for round, value in enumerate(values):
        improves = value is not None and value > best
        best, without = (value, 0) if improves and value is not None else (best, without + 1)
        if patience and without >= patience:
            return round
    return None


def last_round(run: RunContext) -> int:
    """The last round of a run, as far as is known: one that stops it, or the last of all."""
    stopped = stopped_round(values_of_rounds(run), run.config.patience)
    return min(stopped or run.config.rounds, run.config.rounds)
