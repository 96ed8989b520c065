"""Answers to a benchmark's questions, in shards, so that a killed command keeps what it did."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from pad_fast.evaluation.benchmarks.records import Answer, Question
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.benchmark.asking import Asking, thinks
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.ranks import ALONE
from pad_fast.pipeline.sample.engines import Engine, Sampling
from pad_fast.pipeline.sample.shards import shards
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.shared_bar import SharedBar

logger = logging.getLogger("pad_fast")

Count = Callable[[str], int]
NO_ROOM = "no room"  # the finish reason of a turn whose prompt fills the model's window


class Answering:
    """A model that answers the questions of a benchmark.

    Args:
        engine: the model.
        asking: how it is asked.
        folder: of the shards.
        shard_size: questions in a shard; a killed command loses at most the work on one.
        quiet: whether there is no progress bar.
    """

    def __init__(
        self, engine: Engine, asking: Asking, folder: Path, shard_size: int, quiet: bool = False
    ) -> None:
        self.engine, self.asking, self.folder = engine, asking, folder
        self.shard_size, self.quiet = shard_size, quiet

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """The questions whose shards are not there."""
        parts = shards(_rows(questions), self.folder, self.shard_size)
        return [
            questions[row["number"]] for _, path, part in parts if not path.exists() for row in part
        ]

    def answer(self, questions: Sequence[Question], title: str) -> list[Row]:
        """Write the shards that are missing, and read all of them.

        Returns:
            A row for each question: ``number``, ``responses`` and ``finish_reasons`` by turn,
            ``response_tokens``, ``seconds`` (its part of the shard's) and ``time``, in seconds
            since 1970.
        """
        parts = shards(_rows(questions), self.folder, self.shard_size)
        done = sum(
            len(questions[row["number"]].turns)
            for _, path, p in parts
            if path.exists()
            for row in p
        )
        total = sum(len(question.turns) for question in questions)
        quiet = self.quiet or done == total
        with SharedBar(ALONE, total, title, "turn", done, quiet=quiet) as bar:
            for index, path, part in parts:
                if not path.exists():
                    asked = [questions[row["number"]] for row in part]
                    found = self._answer_shard(asked, index, bar)
                    write_rows(path, [{**row, **new} for row, new in zip(part, found, strict=True)])
        return [row for _, path, _ in parts for row in read_rows(path)]

    def prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """The token ids of each question's first turn."""
        chat = self.engine.checkpoint.chat
        return [chat.prompt_ids(self.asking.messages(question, ())) for question in questions]

    def room(self, prompt: Sequence[int]) -> int:
        """The most tokens of an answer that fit in the model's window behind a prompt."""
        window = self.engine.checkpoint.window
        return (
            self.asking.longest
            if window is None
            else min(self.asking.longest, window - len(prompt))
        )

    def _answer_shard(self, questions: Sequence[Question], shard: int, bar: SharedBar) -> list[Row]:
        start = time.perf_counter()
        found: list[Row] = [
            {"responses": [], "finish_reasons": [], "response_tokens": [], "time": 0.0}
            for _ in questions
        ]
        for turn in range(max(len(question.turns) for question in questions)):
            waiting = [i for i, question in enumerate(questions) if turn < len(question.turns)]
            self._answer_turn(questions, found, waiting, (shard, turn), bar)
        for row in found:
            row["seconds"] = (time.perf_counter() - start) / len(found)
        return found

    def _answer_turn(
        self,
        questions: Sequence[Question],
        found: list[Row],
        waiting: Sequence[int],
        place: tuple[int, int],
        bar: SharedBar,
    ) -> None:
        """Add one turn to the rows of the questions that wait for it.

        Questions of one temperature and one room for the answer are sampled together.
        """
        groups: dict[tuple[float, int], list[tuple[int, list[int]]]] = defaultdict(list)
        for i in waiting:
            said = [self.asking.shown(text) for text in found[i]["responses"]]
            prompt = self.engine.checkpoint.chat.prompt_ids(
                self.asking.messages(questions[i], said)
            )
            groups[self.asking.temperature_of(questions[i]), self.room(prompt)].append((i, prompt))
        for (temperature, room), members in sorted(groups.items(), key=lambda item: item[0]):
            if room < 1:
                for i, _ in members:
                    _add(found[i], "", NO_ROOM, 0)
                bar.update(len(members))
                continue
            how = Sampling(room, temperature)
            seed = derive_seed(self.asking.seed, *place, temperature, room)
            prompts = [prompt for _, prompt in members]
            answers = self.engine.sample(prompts, 1, how, seed, bar.update, bar.add_tokens)
            for (i, _), (sample,) in zip(members, answers, strict=True):
                ids = sample.ids[:-1] if sample.finish_reason == "stop" else sample.ids
                text = self.engine.checkpoint.chat.encoder.text(ids)
                _add(found[i], text, sample.finish_reason, len(sample.ids))


def answers_of(
    asking: Asking, questions: Sequence[Question], rows: Sequence[Row], count: Count
) -> list[Answer]:
    """The answers in rows of :meth:`Answering.answer`, with what is odd about them as warnings.

    Args:
        asking: how the questions were asked.
        questions: in the order of the rows.
        rows: from the shards.
        count: the number of tokens of a text, as the official tool counts them.
    """
    found = []
    for question, row in zip(questions, rows, strict=True):
        turns = tuple(asking.shown(text) for text in row["responses"])
        tokens = sum(map(count, turns))
        found.append(Answer(question, turns, row["time"], tokens, asking.system_prompt))
    _warn(asking, rows, found)
    return found


def _warn(asking: Asking, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    texts = [text for row in rows for text in row["responses"]]
    thought = sum(map(thinks, texts))
    empty = sum(not turn for answer in answers for turn in answer.turns)
    name, all_turns = asking.benchmark.name, len(reasons)
    if thought and asking.strip_thinking:
        logger.warning("%s: thinking removed from %d of %d turns", name, thought, all_turns)
    elif thought:
        logger.warning(
            "%s: %d of %d turns hold a block of thinking, which a judge will read; "
            "strip_thinking removes it",
            *(name, thought, all_turns),
        )
    if cut := reasons.count("length"):
        logger.warning(
            "%s: %d of %d turns were cut at max_new_tokens or at the end of the model's window",
            *(name, cut, all_turns),
        )
    if none := reasons.count(NO_ROOM):
        logger.warning(
            "%s: %d of %d turns are empty, as their prompt fills the model's window",
            *(name, none, all_turns),
        )
    elif empty:
        logger.warning("%s: %d of %d turns are empty", name, empty, all_turns)


def _rows(questions: Sequence[Question]) -> list[Row]:
    return [{"number": number} for number in range(len(questions))]


def _add(row: Row, text: str, reason: str, tokens: int) -> None:
    row["responses"].append(text)
    row["finish_reasons"].append(reason)
    row["response_tokens"].append(tokens)
    row["time"] = time.time()
