"""The teacher's own answers to a round's prompts, as one more response of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.whole_files import Row, read_rows

OWN = "from_teacher"  # the column that marks the teacher's responses


def answers_folder(run: RunContext, round: int) -> Path:
    """The folder of the teacher's answers to the prompts of a round."""
    return run.folder.round(round) / "answers"


def sample_answers_of_round(run: RunContext, round: int) -> dict[str, Row]:
    """The teacher's answers to the round's prompts, by prompt; empty if the run wants none.

    Shards that the folder lacks are written. A prompt of an earlier round keeps its answer.
    """
    if run.config.teacher_response == "none":
        return {}
    folder, rows = answers_folder(run, round), unanswered(run, round)
    if run.ranks.agree(unfinished(rows, folder, run.config.shard_size)):
        asked = [{**row, "prompt_ids": run.teacher.prompt_ids(row["prompt"])} for row in rows]
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
    folders = (answers_folder(run, earlier) for earlier in range(1, round + 1))
    return {row["prompt_id"]: row for path in folders if path.exists() for row in read_rows(path)}


def unanswered(run: RunContext, round: int) -> list[Row]:
    """The prompts of a round that no earlier round has, each once."""
    seen = {row["prompt_id"] for r in range(1, round) for row in run.round_rows(r)}
    new = {row["prompt_id"]: row for row in run.round_rows(round) if row["prompt_id"] not in seen}
    return list(new.values())


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
    found = [_answer(run, student, row, answers[row["prompt_id"]]) for row in rows]
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


def _answer(run: RunContext, student: Engine, row: Row, answer: Row) -> tuple[str, list[int], str]:
    """Text, the student's token ids and finish reason of the teacher's answer to a row's prompt."""
    text, reason = answer["completions"][0], answer["finish_reasons"][0]
    reader = student.checkpoint
    ids = list(answer["completion_ids"][0])
    if not run.teacher.same_tokenizer(reader):
        ids = reader.chat.response_ids(row["prompt"], text)
        ids += [reader.end_of_turn_id] if reason == "stop" else []
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
