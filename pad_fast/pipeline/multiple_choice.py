"""Multiple-choice questions to the teacher.

The teacher reads a query with lettered responses and is asked for the letter of the best one. The
probability that it selects a response is read from its next-token distribution, so no text is
generated (PAD, arXiv 2502.14272). :data:`STYLES` lists the questions that can be asked; what their
answers do to the rewards is in :mod:`pad_fast.pipeline.calibration`.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pad_fast.conversation.encoding import TextEncoder

# The wording in tools/choose_question.py that a small model answers with a letter most often, and
# with the least fondness for A; tools/choose_question.jsonl has the numbers.
DEFAULT_TEMPLATE = (
    "Choose the best answer to the request.\n\nRequest: {query}\n\n{options}\n\n"
    "Which answer is best, {letters}?\n\nAnswer:"
)
LETTERS = string.ascii_uppercase
ALL_UP_TO = 8  # responses; all pairs of 64 would be 4,032 questions for each prompt
OPPONENTS = 8  # that each response is compared with where not all pairs are asked

Question = tuple[int, ...]  # the responses that a question shows, in the order of their letters


def _pairs(n: int, opponents: int | None) -> list[Question]:
    """All pairs of ``n`` responses, or as many as give each response ``opponents`` others."""
    if n <= (ALL_UP_TO if opponents is None else opponents + 1):
        return list(itertools.combinations(range(n), 2))
    # Each response meets its neighbours on a circle. Responses are exchangeable draws, so it means
    # nothing which of them are neighbours.
    to_each_side = (opponents or OPPONENTS) // 2
    return [
        tuple(sorted((i, (i + step) % n))) for step in range(1, to_each_side + 1) for i in range(n)
    ]


def _rotations(shown: Question) -> list[Question]:
    """A question in as many orders as it shows responses, each of them once in every place."""
    return [shown[start:] + shown[:start] for start in range(len(shown))]


def _lists(n: int, opponents: int | None) -> list[Question]:
    """``n`` lists in which every response stands in every place once.

    A list shows all responses, or of many the next ones on a circle.
    """
    size = min(n, ALL_UP_TO if opponents is None else opponents + 1)
    return [tuple((first + place) % n for place in range(size)) for first in range(n)]


@dataclass(frozen=True)
class Style:
    """One way to ask.

    Args:
        help: what the questions show, in a few words.
        questions: ``(n, opponents)`` to the questions about ``n >= 2`` responses, in one order.
        balanced: the same, so that every response stands in every place equally often. None asks
            each question in all of its rotations.
    """

    help: str
    questions: Callable[[int, int | None], list[Question]]
    balanced: Callable[[int, int | None], list[Question]] | None = None


STYLES = {
    "pairwise": Style("two responses", _pairs),
    "listwise": Style("all responses", lambda n, opponents: [tuple(range(n))], _lists),
    "none": Style("ask nothing", lambda n, opponents: []),
}


def questions(
    n: int, style: str, every_place: bool, opponents: int | None = None
) -> list[Question]:
    """The questions about ``n`` responses, each as the responses that it shows in letter order.

    Args:
        n: number of responses; about fewer than two nothing is asked.
        style: a key of :data:`STYLES`.
        every_place: ask so that every response stands in every place equally often: a pair in both
            orders, a list in all rotations. Whatever fondness a teacher has for places, A or the
            last one, then adds the same to each response.
        opponents: the even number of others that each response is compared with. None compares
            all of up to 8 responses. Above that, pairwise questions compare with 8 others, and
            listwise ones in every place show 8 responses each.

    Example:
        >>> questions(3, "pairwise", every_place=False)
        [(0, 1), (0, 2), (1, 2)]
        >>> questions(3, "listwise", every_place=True)
        [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
        >>> questions(2, "pairwise", every_place=True)
        [(0, 1), (1, 0)]

    Notes:
        An order and its reverse would do for pairs alone: of three responses or more, those in the
        middle would never come first.
    """
    if n < 2:
        return []
    chosen = STYLES[style]
    if not every_place:
        return chosen.questions(n, opponents)
    if chosen.balanced is not None:
        return chosen.balanced(n, opponents)
    return [order for shown in chosen.questions(n, opponents) for order in _rotations(shown)]


def choice_question(query: str, candidates: Sequence[str], template: str = DEFAULT_TEMPLATE) -> str:
    r"""The text of a multiple-choice question, for one user message to the teacher.

    Args:
        query: what the candidates answer.
        candidates: 2 to 26 responses; they get the letters A, B, ... in this order.
        template: holds the fields ``{query}`` and ``{options}``, and may hold ``{letters}``. The
            options are a line ``A. text`` for each candidate; the letters read "A, B or C".

    Raises:
        ValueError: the number of candidates, or the template's fields, are others.

    Example:
        >>> choice_question("2+2=?", ["4", "5"], "{query}\n{options}\nWhich is best?")
        '2+2=?\nA. 4\nB. 5\nWhich is best?'
    """
    if not 2 <= len(candidates) <= len(LETTERS):
        raise ValueError(
            f"candidates: must be between 2 and {len(LETTERS)} responses, got {len(candidates)}"
        )
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if fields - {"letters"} != {"query", "options"}:
        raise ValueError(
            "template: must hold the fields {query} and {options}, and no others but {letters}, "
            f"got {sorted(fields)}"
        )
    options = "\n".join(
        f"{letter}. {text}" for letter, text in zip(LETTERS, candidates, strict=False)
    )
    shown = LETTERS[: len(candidates)]
    letters = f"{', '.join(shown[:-1])} or {shown[-1]}"
    return template.format(query=query, options=options, letters=letters)


def letter_token_ids(tokenizer: Any, count: int) -> list[list[int]]:
    """The token ids that spell each of the first ``count`` letters, alone or after a space.

    Raises:
        ValueError: a letter is no single token, or shares its token with another letter.
    """
    unknown, encoder = tokenizer.unk_token_id, TextEncoder(tokenizer)
    forms = []
    for letter in LETTERS[:count]:
        # Behind a text, since SentencePiece puts a space in front of what is encoded alone.
        encoded = [encoder.following("\n", text) for text in (letter, f" {letter}")]
        forms.append(sorted({ids[0] for ids in encoded if len(ids) == 1 and ids[0] != unknown}))
        if not forms[-1]:
            raise ValueError(
                f"teacher: its tokenizer has no single token for the letter {letter}; "
                "set mcq_style to none"
            )
    if len({token for ids in forms for token in ids}) != sum(map(len, forms)):
        raise ValueError(
            "teacher: its tokenizer spells two of the letters with one token; set mcq_style to none"
        )
    return forms


def letter_probs(
    logprobs: Sequence[float], forms: Sequence[Sequence[int]], renormalize: bool
) -> tuple[list[float], float]:
    """The probability of each letter, and of all letters together, from their tokens.

    Args:
        logprobs: log-probabilities in nats of the tokens of ``forms``, letter by letter.
        forms: the token ids of each letter, as :func:`letter_token_ids` returns them.
        renormalize: divide each probability by the sum over the letters. The division is done on
            log-probabilities, so that letters which are all improbable can still be compared.
    """
    letters, start = [], 0
    for ids in forms:
        letters.append(_logsumexp(logprobs[start : start + len(ids)]))
        start += len(ids)
    total = _logsumexp(letters)
    shift = total if renormalize else 0.0
    return [math.exp(value - shift) for value in letters], math.exp(total)


def choice_probs(
    n: int, asked: Sequence[Question], probs: Sequence[Sequence[float]]
) -> list[float]:
    """The selection probability p_sel of each of ``n`` responses.

    It is the mean of the probabilities of the response's letter over the questions that show it.

    Args:
        n: number of responses, each shown by at least one question.
        asked: the questions, as :func:`questions` returns them.
        probs: the letters' probabilities in each question.
    """
    totals, counts = [0.0] * n, [0] * n
    for shown, letters in zip(asked, probs, strict=True):
        for response, probability in zip(shown, letters, strict=True):
            totals[response] += probability
            counts[response] += 1
    return [total / count for total, count in zip(totals, counts, strict=True)]


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
