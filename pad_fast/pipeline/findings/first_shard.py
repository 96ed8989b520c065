"""The findings of a run's first shard, of which it warns once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.findings import adapter, responses, rewards, templates
from pad_fast.pipeline.findings.finding import Finding
from pad_fast.pipeline.findings.heldout import heldout
from pad_fast.pipeline.run import RunContext
from pad_fast.report.wording import RATER, worded
from pad_fast.training.row_columns import as_counted

logger = logging.getLogger("pad_fast")


def of_samples(run: RunContext, rows: Sequence[Row], heldout_prompts: int) -> list[Finding]:
    """The findings of sampled rows.

    Args:
        run: the run.
        rows: prompts of the first round with responses of the base student.
        heldout_prompts: the number of held-out prompts.
    """
    student, config = run.student(0), run.config
    return [
        *([adapter.rate(run.learning_rates)] if config.use_peft else []),
        templates.template(student, rows),
        responses.ending(student, rows, config),
        responses.clipped(rows, config),
        responses.repeated(rows, config),
        heldout(heldout_prompts),
    ]


def of_scores(run: RunContext, rows: Sequence[Row], metrics: Row) -> list[Finding]:
    """The findings of rows that are scored, and of the metrics of scoring them.

    They speak of whoever scored, and of multiple choice only where there is some. Rankings are of
    equal responses as often as the training counts them.
    """
    config, training = run.config, run.training
    ranked = [as_counted(row, training.repeats) for row in rows]
    judge = RATER if "given_scores" in rows[0] or run.judge is None else run.judge.role
    asks = config.asks and judge != RATER
    found = [
        *([templates.template(run.teacher, rows)] if config.teacher else []),
        rewards.masked(rows),
        rewards.flat_groups(ranked, training, asks),
        rewards.saturated(ranked, training, asks),
        responses.length(ranked, config, training),
        rewards.agreement(ranked, asks),
        rewards.position(metrics, config, asks),
        rewards.letters(metrics, config),
        rewards.choices(metrics, config),
    ]
    return [
        replace(
            one,
            found=worded(one.found, judge.replace("_", " ")),
            advice=worded(one.advice, judge.replace("_", " ")),
        )
        for one in found
    ]


def warn(findings: Iterable[Finding], title: str) -> None:
    """Log what is not ok, each in the doctor's words, in one warning."""
    lines = [
        f"  {found.check} ({found.verdict}): {found.found} → {found.advice}"
        for found in findings
        if found.verdict != "ok"
    ]
    if lines:
        logger.warning("%s: of its first shard,\n%s", title, "\n".join(lines))
