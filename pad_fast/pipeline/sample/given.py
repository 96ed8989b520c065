"""Given responses in the place of samples, and their scores in the place of the teacher's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pad_fast.conversation.responses import encoded_response
from pad_fast.files.own_files import column_names
from pad_fast.files.stored_rows import KeyedRows, Row, Rows
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.given_responses import COLUMNS, read_again
from pad_fast.pipeline.parquet_rows import keep_rows, read_rows, shard_paths
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.sample.shards import OnShard, keep_shard, shards, unfinished
from pad_fast.pipeline.score.metrics import reward_metrics

logger = logging.getLogger("pad_fast")


def is_given(rows: Rows) -> bool:
    """Whether the responses to these prompts of a run are given: to all of them, or to none."""
    return bool(rows) and rows[0].get("given") is not None


def write_samples(
    run: RunContext,
    rows: Rows,
    folder: Path,
    *,
    rewards: bool = False,
    on_shard: OnShard | None = None,
) -> None:
    """Write the shards of given responses that ``folder`` lacks.

    Args:
        run: the run.
        rows: its prompts.
        folder: where the shards are.
        rewards: add the base student's rewards to all rows, as a loss with an anchor needs them;
            else to those of the first shard, of which the run warns.
        on_shard: called with index, rows and metrics of each shard before it is written.

    Raises:
        ValueError: the responses are others than those that the run was started with.
    """
    if not unfinished(rows, folder, run.config.shard_size):
        return
    student, cut = run.student(0), 0
    responses = KeyedRows(keep_rows(run.files, read_again(run.config)), "given")
    for index, path, part in shards(rows, folder, run.config.shard_size):
        if path.exists():
            continue
        found = [_encoded(student, row, responses) for row in part]
        cut += sum(row.pop("cut") for row in found)
        if rewards or index == 0 or run.settings.has_anchor:
            with run.engine(student) as engine:
                own = engine.rewards(
                    [row["prompt_ids"] for row in found], [row["completion_ids"] for row in found]
                )
            found = [
                {**row, "student_rewards": values} for row, values in zip(found, own, strict=True)
            ]
        keep_shard(path, found, sampling_metrics(found), on_shard)
    if cut:
        logger.warning("%d given responses were cut at the end of the student's window", cut)


def write_scores(samples: Path, folder: Path, on_shard: OnShard | None = None) -> None:
    """Write the scored shards that ``folder`` lacks, of samples whose scores are given."""
    for source in shard_paths(samples):
        target = folder / source.name
        if target.exists() or "given_scores" not in column_names(source):
            continue
        scored = [
            {
                **row,
                "teacher_logps": None,
                "teacher_num_tokens": None,
                "teacher_choice_probs": None,
                "teacher_rewards": row["given_scores"],
                "scored_by": row["sampled_by"],
            }
            for row in read_rows(source)
        ]
        keep_shard(target, scored, reward_metrics(scored), on_shard)


def _encoded(student: Checkpoint, row: Row, responses: Mapping[str, Row]) -> Row:
    """A row as sampling writes it, and ``cut``, the number of responses that had to be cut."""
    if row["given"] not in responses:
        raise ValueError(
            f"responses: those to the prompt {row['prompt_id']} are gone or others than when the "
            "run was started; put them back or give another output_dir"
        )
    given = responses[row["given"]]
    texts, ids, reasons, cut = [], [], list(given["finish_reasons"]), 0
    room = None if student.window is None else student.window - len(row["prompt_ids"])
    for i, response in enumerate(given["completions"]):
        text, tokens = encoded_response(
            student.chat, row["prompt"], response, cut=reasons[i] == "length"
        )
        if room is not None and len(tokens) > room:
            tokens, reasons[i], cut = tokens[:room], "length", cut + 1
        texts.append(text)
        ids.append(tokens)
    scores = {} if given["given_scores"] is None else {"given_scores": given["given_scores"]}
    return {
        **row,
        "completions": texts,
        "completion_ids": ids,
        "finish_reasons": reasons,
        "student_rewards": None,
        **scores,
        "sampled_by": "given",
        "cut": cut,
    }


def without_responses(rows: Iterable[Row]) -> Iterator[Row]:
    """Prompts as a run keeps them, which read their responses again where they are needed."""
    return ({name: row[name] for name in row if name not in COLUMNS} for row in rows)
