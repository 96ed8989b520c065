"""Given responses in the place of samples, and their scores in the place of the teacher's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pad_fast.conversation.responses import encoded_response
from pad_fast.files.own_files import column_names
from pad_fast.files.stored_rows import KeyedRows, Row, Rows, StoredRows
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.common_rows import common_rows
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.given_responses import COLUMNS, read_again
from pad_fast.pipeline.parquet_rows import keep_rows, read_rows, shard_paths
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.sample.shards import OnShard, keep_shard, shards
from pad_fast.pipeline.score.metrics import reward_metrics
from pad_fast.pipeline.shared_bar import SharedBar

logger = logging.getLogger("pad_fast")


def is_given(rows: Rows) -> bool:
    """Whether the responses to these prompts of a run are given: to all of them, or to none."""
    return bool(rows) and rows[0].get("given") is not None


def write_samples(
    run: RunContext,
    rows: Rows,
    folder: Path,
    *,
    title: str,
    rewards: bool = False,
    on_shard: OnShard | None = None,
) -> None:
    """Write the shards of given responses that ``folder`` lacks, on all ranks together.

    Args:
        run: the run.
        rows: its prompts.
        folder: where the shards are.
        title: of the progress bar of the student, which reads the responses that get rewards.
        rewards: add the base student's rewards to all rows, as a loss with an anchor needs them;
            else to those of the first shard, of which the run warns.
        on_shard: called with index, rows and metrics of each shard that this rank writes, before
            it is written.

    Raises:
        ValueError: the responses are others than those that the run was started with.
    """
    every = shards(rows, folder, run.config.shard_size)
    missing = set(run.ranks.agree([index for index, path, _ in every if not path.exists()]))
    if not missing:
        return
    student, todo = run.student(0), [shard for shard in every if shard[0] in missing]
    all_rewarded = rewards or run.settings.has_anchor
    rewarded = [shard for shard in todo if all_rewarded or shard[0] == 0]
    with common_rows(run, "given", partial(keep_rows, rows=read_again(run.config))) as kept:
        encoded = _Encoded(student, KeyedRows(StoredRows(kept), "given"))
        if rewarded:
            _write_rewarded(run, encoded, rewarded, title, on_shard)
        for _, path, part in run.ranks.share(todo[len(rewarded) :]):
            found = encoded.rows(part)
            keep_shard(path, found, sampling_metrics(found), on_shard)
    cut = sum(run.ranks.gather(encoded.cut))
    if cut and run.ranks.is_main:
        logger.warning("%d given responses were cut at the end of the student's window", cut)


def _write_rewarded(
    run: RunContext,
    encoded: _Encoded,
    todo: Sequence[tuple[int, Path, Rows]],
    title: str,
    on_shard: OnShard | None,
) -> None:
    """Write shards with the student's rewards. Its weights are loaded once for all of them."""
    ranks, total = run.workers(encoded.student), sum(len(part) for _, _, part in todo)
    with (
        run.engine(encoded.student) as engine,
        measured(title, "response", ranks) as work,
        SharedBar(ranks, total, title, "prompt", quiet=run.config.disable_tqdm) as bar,
    ):
        for _, path, part in ranks.share(todo):
            found = encoded.rows(part)
            responses = [row["completion_ids"] for row in found]
            own = engine.rewards([row["prompt_ids"] for row in found], responses)
            for row, values in zip(found, own, strict=True):
                row["student_rewards"] = values
            keep_shard(path, found, sampling_metrics(found), on_shard)
            tokens = sum(len(ids) for group in responses for ids in group)
            work.add(sum(map(len, responses)), tokens)
            bar.add_tokens(tokens)
            bar.update(len(part))


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


class _Encoded:
    """Prompts with the responses that are given to them, in the student's tokens.

    Args:
        student: the base student.
        responses: rows of responses by their digest, ``given``.

    Attributes:
        cut: the number of responses that did not fit the student's window so far.
    """

    def __init__(self, student: Checkpoint, responses: Mapping[str, Row]) -> None:
        self.student, self.responses, self.cut = student, responses, 0

    def rows(self, prompts: Rows) -> list[Row]:
        """The rows of prompts as sampling writes them."""
        return [self._row(prompt) for prompt in prompts]

    def _row(self, row: Row) -> Row:
        if row["given"] not in self.responses:
            raise ValueError(
                f"responses: those to the prompt {row['prompt_id']} are gone or others than when "
                "the run was started; put them back or give another output_dir"
            )
        given, student = self.responses[row["given"]], self.student
        texts, ids, reasons = [], [], list(given["finish_reasons"])
        room = None if student.window is None else student.window - len(row["prompt_ids"])
        for i, response in enumerate(given["completions"]):
            text, tokens = encoded_response(
                student.chat, row["prompt"], response, cut=reasons[i] == "length"
            )
            if room is not None and len(tokens) > room:
                tokens, reasons[i], self.cut = tokens[:room], "length", self.cut + 1
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
        }


def without_responses(rows: Iterable[Row]) -> Iterator[Row]:
    """Prompts as a run keeps them, which read their responses again where they are needed."""
    return ({name: row[name] for name in row if name not in COLUMNS} for row in rows)
