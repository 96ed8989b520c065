"""How well a text keeps a rule of the teacher's: one sentence of at most twenty words.

The rule is a system prompt. A student that never sees it is distilled from the same model under it,
and a few lines of code grade both. Of the five wordings that were tried on 40 validation prompts a
model of 135M parameters kept this one best (0.71 of the parts, against 0.51 to 0.66).
"""

from __future__ import annotations

import re

WORDS = 20
RULE = "Summarize your answer in a single sentence of at most twenty words."
LIST_NUMBER = re.compile(r"^\d+[.)]\s+")
MARKUP = re.compile(r"(?m)^\s*(?:[-*+•]|\d+[.)])\s|^\s*#|\*\*|```")
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s*$")
# Where a next sentence begins: not behind an abbreviation, nor where a small letter follows.
NEXT_SENTENCE = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\b[A-Z])"
    r"[.!?…][\"'”’)\]]*\s+(?![a-z])\S"
)


def parts(text: str) -> dict[str, float]:
    """The parts of obedience, each 0 or 1.

    Args:
        text: a whole answer, without the token that ends it.

    Returns:
        ``sentence``: there is text, and neither a second sentence nor a line break. ``short``: at
        most twenty words. ``plain``: no list, heading, bold or code. ``whole``: it ends as a
        sentence does.
    """
    body = text.strip()
    one = "\n" not in body and NEXT_SENTENCE.search(LIST_NUMBER.sub("", body)) is None
    return {
        "sentence": float(bool(body) and one),
        "short": float(0 < len(body.split()) <= WORDS),
        "plain": float(bool(body) and MARKUP.search(body) is None),
        "whole": float(SENTENCE_END.search(body) is not None),
    }


def obedience(text: str) -> float:
    """The mean of the parts, from 0 to 1.

    Example:
        >>> from benchmarks.evidence.obedience import obedience
        >>> obedience("Take a walk."), obedience("You can:\\n- walk\\n- sleep")
        (1.0, 0.25)
    """
    found = parts(text)
    return sum(found.values()) / len(found)
