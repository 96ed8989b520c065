"""The teacher's own answers to a round's prompts, as one more response of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pad_fast.files.own_files import read_tables
from pad_fast.files.stored_rows import KeyedRows, Row, Rows, changed, take
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import shard_paths
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.seeds import round_seed

OWN = "from_teacher"  # the column that marks the teacher's responses
ANSWER = ("prompt_id", "completions", "completion_ids", "finish_reasons")


def answers_folder(run: RunContext, round: int) -> Path:
    """The folder of the teacher's answers to the prompts of a round."""
    return run.folder.round(round) / "answers"


def sample_answers_of_round(run: RunContext, round: int) -> None:
    """Write the shards of the teacher's answers to the round's prompts that its folder lacks.

    A prompt of an earlier round keeps its answer.
    """
    if run.config.teacher_response == "none":
        return
    folder, rows = answers_folder(run, round), unanswered(run, round)
    if run.ranks.agree(unfinished(rows, folder, run.config.shard_size)):
        asked = changed(rows, partial(with_ids_of, run.teacher))
        with run.engine(run.teacher) as teacher:
            sample_shards(
                teacher,
                asked,
                folder,
                run.sampler(0 if run.config.teacher_response == "greedy" else 1),
                seed=round_seed(run.config.seed, round, "answers"),
                title="teacher's answers",
                ranks=run.workers(run.teacher),
            )
        run.engines.close()  # the student needs the memory


def teacher_answers(run: RunContext, round: int) -> Mapping[str, Row]:
    """The teacher's answers to the prompts of the rounds up to one; empty if the run wants none."""
    if run.config.teacher_response == "none":
        return {}
    folders = (answers_folder(run, earlier) for earlier in range(1, round + 1))
    shards = [shard for folder in folders for shard in shard_paths(folder)]
    kept = run.files.keep(part for shard in shards for part in read_tables(shard, ANSWER))
    return KeyedRows(kept, "prompt_id")


def unanswered(run: RunContext, round: int) -> Rows:
    """The prompts of a round that no earlier round has, each once."""
    before = len(run.places_until(round - 1))
    return take(run.train_rows, run.places_until(round)[before:])


def with_ids_of(reader: Checkpoint, row: Row) -> Row:
    """A prompt with the token ids of a model's chat template."""
    return {**row, "prompt_ids": reader.prompt_ids(row["prompt"])}


def with_teacher_answers(
    run: RunContext, student: Engine, answers: Mapping[str, Row], rows: Sequence[Row]
) -> list[Row]:
    """Sampled rows with the teacher's answer as the last response, in the student's tokens.

    Args:
        run: the run.
        student: the model that sampled the rows; its rewards of the answers are added to its own.
        answers: the teacher's, by prompt.
        rows: as sampling makes them.
    """
    reader = student.checkpoint
    reuse_ids = run.teacher.same_tokenizer(reader)
    found = [_answer(reader, row, answers[row["prompt_id"]], reuse_ids=reuse_ids) for row in rows]
    prompts = [row["prompt_ids"] for row in rows]
    rewards = student.rewards(prompts, [[ids] for _, ids, _ in found])
    return [
        {
            **row,
            "completions": [*row["completions"], text],
            "completion_ids": [*row["completion_ids"], ids],
            "finish_reasons": [*row["finish_reasons"], reason],
            "student_rewards": [*row["student_rewards"], reward],
            OWN: [False] * len(row["completions"]) + [True],
        }
        for row, (text, ids, reason), [reward] in zip(rows, found, rewards, strict=True)
    ]


def _answer(
    reader: Checkpoint, row: Row, answer: Row, *, reuse_ids: bool
) -> tuple[str, list[int], str]:
    """Text, the student's token ids and finish reason of the teacher's answer to a row's prompt."""
    text, reason = answer["completions"][0], answer["finish_reasons"][0]
    ids = list(answer["completion_ids"][0])
    if not reuse_ids:
        ids = reader.response_ids(row["prompt"], text, reason)
    room = len(ids) if reader.window is None else reader.window - len(row["prompt_ids"])
    return text, ids[:room], reason if len(ids) <= room else "length"


def sampled_alone(rows: Sequence[Row]) -> list[Row]:
    """The rows without the teacher's answers."""
    names = ("completions", "completion_ids", "finish_reasons")
    return [
        {
            **row,
            **{
                name: [value for value, own in zip(row[name], row[OWN], strict=True) if not own]
                for name in names
            },
        }
        if row.get(OWN)
        else row
        for row in rows
    ]
