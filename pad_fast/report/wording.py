"""The words for whoever scored the responses and for the fixed groups, in texts about a run."""

from __future__ import annotations

import re

RATER = "rater"  # whoever gave the scores that came with given responses
SAMPLED, GIVEN = "the base student's samples", "given responses"  # what the fixed groups are
TEACHER = re.compile(r"(?<![.\w])([tT])eacher(?![\w])")


def worded(text: str, judge: str, groups: str = SAMPLED) -> str:
    """A text about the teacher as one about the judge; names of settings stay as they are.

    Args:
        text: speaks of the teacher, and of the fixed groups as the base student's samples.
        judge: who scored.
        groups: what the fixed groups are.

    Example:
        >>> from pad_fast.report.wording import worded
        >>> worded("Teacher's best; see teacher_beta", "reward model")
        "Reward model's best; see teacher_beta"
    """
    return TEACHER.sub(
        lambda found: judge[0].upper() + judge[1:] if found[1] == "T" else judge,
        text.replace(SAMPLED, groups),
    )
