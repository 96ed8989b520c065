"""A judge that compares the answers of two models by the probabilities of the letters A and B."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pad_fast.conversation import conversation_text
from pad_fast.evaluation.benchmarks.comparison import Game
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.benchmark.folder import BenchmarkFolder
from pad_fast.pipeline.multiple_choice import (
    DEFAULT_TEMPLATE,
    choice_question,
    letter_probs,
    letter_token_ids,
)
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.ranks import ALONE
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.shards import shards
from pad_fast.pipeline.shared_bar import SharedBar

logger = logging.getLogger("pad_fast")

NOT_COMPARABLE = "not comparable with published numbers, which have another judge"
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of two options.

    Args:
        first: the probability of the first, of the two letters' together.
        mass: the probability of the two letters, of all tokens'.
    """

    first: float
    mass: float


class Judge(ABC):
    """Somebody who is shown two options and answers with a letter.

    Args:
        name: what tables call it.
        identity: what computes, for the folder's manifest.
    """

    def __init__(self, name: str, identity: str) -> None:
        self.name, self.identity = name, identity

    @abstractmethod
    def ask(self, questions: Sequence[str], progress: Progress) -> list[Verdict | None]:
        """A verdict on each question; None on one that is longer than the judge's window."""


class ModelJudge(Judge):
    """A causal language model, asked by its own log-probabilities of the letters."""

    def __init__(self, engine: Engine, name: str = "") -> None:
        super().__init__(name or engine.checkpoint.path, engine.identity)
        self.engine = engine
        self.forms = letter_token_ids(engine.checkpoint.tokenizer, 2)

    def ask(self, questions: Sequence[str], progress: Progress) -> list[Verdict | None]:
        """See :meth:`Judge.ask`."""
        checkpoint = self.engine.checkpoint
        prompts = [
            checkpoint.prompt_ids([{"role": "user", "content": question}]) for question in questions
        ]
        window = checkpoint.window
        fits = [i for i, p in enumerate(prompts) if window is None or len(p) <= window]
        progress(len(prompts) - len(fits))
        tokens = [token for form in self.forms for token in form]
        found: list[Verdict | None] = [None] * len(prompts)
        asked = self.engine.choices([prompts[i] for i in fits], tokens, progress) if fits else []
        for i, logprobs in zip(fits, asked, strict=True):
            probabilities, mass = letter_probs(logprobs, self.forms, renormalize=True)
            found[i] = Verdict(probabilities[0], mass)
        return found


@dataclass(frozen=True)
class Match:
    """Two answers to one turn of a question.

    Args:
        question: the question's id.
        category: its category.
        query: what both answer, with the turns before it.
        model, baseline: the answers.
    """

    question: str | int
    category: str
    query: str
    model: str
    baseline: str


def turn_matches(
    question: str | int,
    category: str,
    turns: Sequence[str],
    model: Sequence[str],
    baseline: Sequence[str],
) -> list[Match]:
    """A match for each turn. From the second on, the query is the whole of what the user said, and
    an option is all that a model answered, since an answer may refer to the one before.
    """
    found = []
    for last in range(1, len(turns) + 1):
        said = [{"role": "user", "content": text} for text in turns[:last]]
        found.append(
            Match(
                question,
                category,
                conversation_text(said),
                _joined(model[:last]),
                _joined(baseline[:last]),
            )
        )
    return found


def _joined(answers: Sequence[str]) -> str:
    if len(answers) == 1:
        return answers[0]
    return "\n\n".join(f"(answer {n}) {text}" for n, text in enumerate(answers, 1))


def judge_matches(
    judge: Judge,
    matches: Sequence[Match],
    folder: BenchmarkFolder,
    shard_size: int,
    *,
    title: str,
    quiet: bool = False,
) -> tuple[list[Game], Row]:
    """Ask about every match in both orders, in shards that are kept.

    Args:
        judge: who is asked.
        matches: what about.
        folder: of the shards.
        shard_size: matches in a shard.
        title: of the progress bar.
        quiet: whether there is none.

    Returns:
        The games, without those that are longer than the judge's window; and ``unjudged``, their
        number, and ``letter_mass``, the mean probability that the judge gives to the letters.

    Raises:
        ValueError: the judge could read none of the matches.
    """
    parts = shards([{"number": n} for n in range(len(matches))], folder.shards, shard_size)
    done = sum(len(part) for _, path, part in parts if path.exists())
    with SharedBar(ALONE, 2 * len(matches), title, "question", 2 * done, quiet=quiet) as bar:
        for _, path, part in parts:
            if not path.exists():
                chosen = [matches[row["number"]] for row in part]
                write_rows(path, _verdict_rows(judge, chosen, part, bar.update))
    rows = [row for _, path, _ in parts for row in read_rows(path)]
    return _games(judge, matches, rows)


def _verdict_rows(
    judge: Judge, matches: Sequence[Match], part: Sequence[Row], progress: Progress
) -> list[Row]:
    orders = [[(m.model, m.baseline), (m.baseline, m.model)] for m in matches]
    texts = [
        choice_question(match.query, options, DEFAULT_TEMPLATE)
        for match, both in zip(matches, orders, strict=True)
        for options in both
    ]
    found = judge.ask(texts, progress)
    rows = []
    for row, one, other in zip(part, found[::2], found[1::2], strict=True):
        judged = one is not None and other is not None
        rows.append(
            {
                **row,
                "judged": judged,
                "first": one.first if one and judged else 0.0,
                # Where the model's answer stands second, it is preferred by the rest.
                "second": 1.0 - other.first if other and judged else 0.0,
                "mass": (one.mass + other.mass) / 2 if one and other else 0.0,
            }
        )
    return rows


def _games(judge: Judge, matches: Sequence[Match], rows: Sequence[Row]) -> tuple[list[Game], Row]:
    games, masses = [], []
    for match, row in zip(matches, rows, strict=True):
        if not row["judged"]:
            continue
        lengths = len(match.model), len(match.baseline)
        games.append(Game(match.question, match.category, row["first"], row["second"], *lengths))
        masses.append(row["mass"])
    unjudged = len(matches) - len(games)
    if not games:
        raise ValueError(f"judge: {judge.name} has too short a window to read any of the matches")
    if unjudged:
        logger.warning(
            "%d of %d matches are left out, as they are longer than the window of %s",
            *(unjudged, len(matches), judge.name),
        )
    return games, {"unjudged": unjudged, "letter_mass": sum(masses) / len(masses)}
