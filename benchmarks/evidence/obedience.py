"""How well a text keeps a rule of the teacher's: one short paragraph, no list.

The rule is a system prompt. A student that never sees it is distilled from the same model under it,
and a few lines of code grade both.
"""

from __future__ import annotations

import re

RULE = (
    "Answer in one short paragraph of at most two sentences. Never use a list, a heading, bold "
    "text or a line break."
)
WORDS = 50  # two sentences have fewer
MARKUP = re.compile(r"(?m)^\s*(?:[-*+•]|\d+[.)])\s|^\s*#|\*\*|```")
SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s*$")


def parts(text: str) -> dict[str, float]:
    """The parts of obedience, each 0 or 1.

    Args:
        text: a whole answer, without the token that ends it.

    Returns:
        ``paragraph``: there is text and no line break in it. ``plain``: no list, heading, bold or
        code. ``short``: at most 50 words. ``whole``: it ends as a sentence does.
    """
    body = text.strip()
    return {
        "paragraph": float(bool(body) and "\n" not in body),
        "plain": float(bool(body) and MARKUP.search(body) is None),
        "short": float(0 < len(body.split()) <= WORDS),
        "whole": float(SENTENCE_END.search(body) is not None),
    }


def obedience(text: str) -> float:
    """The mean of the parts, from 0 to 1.

    Example:
        >>> from benchmarks.evidence.obedience import obedience
        >>> obedience("Take a walk. It helps."), obedience("You can:\\n- walk\\n- sleep")
        (1.0, 0.25)
    """
    found = parts(text)
    return sum(found.values()) / len(found)
