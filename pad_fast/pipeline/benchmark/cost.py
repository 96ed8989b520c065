"""What a benchmark will cost, in a line before it starts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from pad_fast.evaluation.benchmarks.records import Question
from pad_fast.pipeline.benchmark.answering import Answering
from pad_fast.pipeline.benchmark.asking import Asking
from pad_fast.pipeline.sample.engines import Sampling

TRIED = 16  # tokens of the trial
WORTH_IT = 3  # shards; the trial takes about as long as a part of one


def tokens_line(
    asking: Asking, questions: Sequence[Question], prompts: Sequence[Sequence[int]]
) -> str:
    """The numbers of questions, of turns and of tokens at most."""
    turns = sum(len(question.turns) for question in questions)
    read, most = sum(map(len, prompts)), turns * asking.longest
    shown = f", {turns:,} turns" if turns != len(questions) else ""
    return (
        f"{asking.benchmark.name}: {len(questions):,} questions{shown}; {read:,} tokens of prompts "
        f"in the first turns, at most {most:,} new tokens ({asking.longest:,} a turn)"
    )


def longest_seconds(answering: Answering, questions: Sequence[Question]) -> float | None:
    """The time of all turns if each answer takes all tokens that it may; None for a few shards.

    It is estimated from the largest batch of the first shard: the time of one token, and of 16
    more. A later turn reads the answers before it too.

    Args:
        answering: the model.
        questions: those that are still to be answered, at least one.
    """
    if len(questions) < WORTH_IT * answering.shard_size:
        return None
    groups = _by_temperature(answering, questions[: answering.shard_size])
    batch = answering.prompts(max(groups, key=len))
    batch = [prompt for prompt in batch if answering.room(prompt) > TRIED]
    if not batch:
        return None
    engine, times, longest = answering.engine, [], answering.asking.longest
    engine.sample([min(batch, key=len)], 1, Sampling(1, 0.0), seed=0)  # loads the weights
    for tokens in (1, 1 + TRIED):
        start = time.perf_counter()
        engine.sample(batch, 1, Sampling(tokens, 0.0), seed=0)
        times.append(time.perf_counter() - start)
    a_token = max(0.0, times[1] - times[0]) / TRIED
    grows = longest * len(batch) / sum(map(len, batch))
    return sum(
        calls * (times[0] * (1 + turn * grows) + a_token * (longest - 1))
        for turn, calls in enumerate(_calls(answering, questions))
    )


def _by_temperature(answering: Answering, questions: Sequence[Question]) -> list[list[Question]]:
    """The questions that are sampled together."""
    groups: dict[float, list[Question]] = defaultdict(list)
    for question in questions:
        groups[answering.asking.temperature_of(question)].append(question)
    return list(groups.values())


def _calls(answering: Answering, questions: Sequence[Question]) -> list[int]:
    """The number of batches of each turn."""
    size, found = answering.shard_size, [0] * max(len(question.turns) for question in questions)
    for start in range(0, len(questions), size):
        for group in _by_temperature(answering, questions[start : start + size]):
            for turn in range(max(len(question.turns) for question in group)):
                found[turn] += 1
    return found


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits, such as 42 s, 12 min or 3.5 h.

    Example:
        >>> duration(42), duration(700), duration(12_600)
        ('42 s', '12 min', '3.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
