"""Calibrating the teacher's rewards by multiple choice: the questions, what is read from them, and the mix with the reward.

The teacher is shown a query with lettered answers and asked for the letter of the best one; the probability that it selects a
response is read from its next-token distribution, so no text is generated (Gu et al., arXiv 2502.14272). The released code asks
each pair once, with the lower index always lettered A, and does not renormalise; we ask both orders by default, so that a
fondness for the letter A cancels.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

DEFAULT_TEMPLATE = "{query}\n\n{options}\n\nWhich answer is best? Reply with its letter."
LETTERS = string.ascii_uppercase
ALL_PAIRS_UP_TO = 8  # responses; n = 64 would be 4,032 questions a prompt
PAIR_OFFSETS = 4  # above that each response meets its 4 neighbours on either side: 8 partners


def choice_question(query: str, candidates: Sequence[str], template: str = DEFAULT_TEMPLATE) -> str:
    """The multiple-choice question about `candidates`, lettered A, B, ... in the order given; one user message to the teacher.

    `template` holds the fields `{query}` and `{options}`, the latter one line `A. text` a candidate. ValueError for fewer than 2
    or more than 26 candidates and for a template without exactly these fields.
    """
    if not 2 <= len(candidates) <= len(LETTERS):
        raise ValueError(f"candidates: between 2 and {len(LETTERS)} answers can be lettered, got {len(candidates)}")
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if fields != {"query", "options"}:
        raise ValueError(f"template: must hold the fields {{query}} and {{options}} and no others, got {sorted(fields)}")
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, candidates, strict=False))
    return template.format(query=query, options=options)


def query_text(messages: Sequence[dict[str, Any]]) -> str:
    """What the question asks about: the text of a single message, else the conversation, `role: content` a line."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
