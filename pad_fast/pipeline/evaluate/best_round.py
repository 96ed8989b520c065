"""The round whose student a run ends with, and what is said about it."""

from __future__ import annotations

import logging
from pathlib import Path

from pad_fast.files.own_files import write_json
from pad_fast.pipeline.evaluate.validation import best_round, last_round, values_of_rounds
from pad_fast.pipeline.run import RunContext

logger = logging.getLogger("pad_fast")


def announce_stop(run: RunContext, round: int) -> None:
    """Say that the run stops before its last round, and why."""
    logger.warning(
        "the run stops after round %d of %d: %d rounds in a row did not improve on the %d "
        "validation prompts (%s, the base student first); patience: 0 does all rounds",
        round,
        run.config.rounds,
        run.config.patience,
        len(run.validation_rows),
        ", ".join("–" if value is None else f"{value:.3g}" for value in values_of_rounds(run)),
    )


def chosen_student(run: RunContext) -> Path:
    """The folder of the run's student: that of the best round, or of the last one.

    What was compared is written to ``best.json``. A warning tells of a training that no round of
    which is better than the base student.
    """
    values = values_of_rounds(run)
    best, last = best_round(values), last_round(run)
    if best is None:
        return run.folder.student(last)
    chosen = best if run.config.load_best_round else last
    write_json(
        run.folder.root / "best.json",
        {
            "round": best,
            "student": str(run.folder.student(best).relative_to(run.folder.root)),
            "num_prompts": len(run.validation_rows),
            "values": values,
        },
    )
    base, value = values[0], values[best]
    if base is not None and value is not None and value <= base:
        logger.warning(
            "no round is better than the base student on the %d validation prompts (%.3g before, "
            "%.3g after round %d, the best): a smaller learning_rate, a likelihood_weight above 0 "
            "or teacher_response: greedy may help",
            len(run.validation_rows),
            base,
            value,
            best,
        )
    if best != last:
        print(f"round {best} of {last} is the best on the {len(run.validation_rows)} validation "
              f"prompts; round {chosen} is taken")  # fmt: skip
    return run.folder.student(chosen)
