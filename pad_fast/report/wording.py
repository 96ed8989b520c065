"""The word for whoever scored the responses, in the report's own texts."""

from __future__ import annotations

import re

RATER = "rater"  # whoever gave the scores that came with given responses
TEACHER = re.compile(r"(?<![.\w])([tT])eacher(?![\w])")


def worded(text: str, judge: str) -> str:
    """A text about the teacher as one about the judge; names of settings stay as they are.

    Example:
        >>> from pad_fast.report.wording import worded
        >>> worded("Teacher's best; see teacher_beta", "reward model")
        "Reward model's best; see teacher_beta"
    """
    if judge == RATER:
        text = text.replace("the base student's samples", "given responses")
    return TEACHER.sub(
        lambda found: judge[0].upper() + judge[1:] if found[1] == "T" else judge, text
    )
