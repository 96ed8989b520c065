"""The check of the number of held-out prompts."""

from __future__ import annotations

import math

from pad_fast.pipeline.findings.finding import Finding, Verdict


def heldout(count: int) -> Finding:
    """Whether the held-out prompts can show an improvement: "look" below 30, "problem" below 2.

    An accuracy of one half over n prompts has a standard error of 0.5 / sqrt(n).
    """
    if count == 0:
        return Finding("held-out", "ok", "nothing is evaluated", numbers={"prompts": 0})
    error = 0.5 / math.sqrt(count)
    verdict: Verdict = "ok" if count >= 30 else "look" if count >= 2 else "problem"
    found = (
        f"{count} held-out prompt{'s' if count > 1 else ''}: an accuracy has a standard error of "
        f"up to {error:.0%}"
    )
    advice = "raise heldout_size, or give more prompts in heldout"
    return Finding("held-out", verdict, found, advice, {"prompts": count})
