"""The methods that a run compares with its own: their settings, their names and their folders.

Each trains the base student anew on the scores of the first round, which are made once, for as many
steps as the run's own method.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pad_fast.evaluation import model_names
from pad_fast.training.options.loss import LossArguments

FOLDER = "compare"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,31}")
OF_ALL = ("normalize", "repeats")  # the run's, where a method does not set them
OF_LOSS = tuple(each.name for each in dataclasses.fields(LossArguments) if each.name not in OF_ALL)
MAY_DIFFER = (
    *(*OF_LOSS, *OF_ALL, "train_on"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
)


def check_compared(compare: Mapping[str, Any], rounds: int) -> None:
    """Raise ValueError for a name or an option that a compared method cannot have.

    Args:
        compare: name -> options.
        rounds: of the run.
    """
    if compare and rounds != 1:
        raise ValueError(
            "compare: rounds must be 1, since later rounds sample from the student of the run's "
            f"own method, got rounds={rounds}"
        )
    seen: dict[str, str] = {}
    for name, options in compare.items():
        taken = name in (model_names.TEACHER, model_names.SEQKD) or model_names.is_student(name)
        if not isinstance(name, str) or NAME.fullmatch(name) is None or taken:
            raise ValueError(
                "compare: a method's name must be up to 32 letters, digits or any of _.+- and not "
                f"teacher, seqkd or student-..., got {name!r}"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(f"compare: {other!r} and {name!r} would have one folder; rename one")
        if not isinstance(options, Mapping):
            raise ValueError(
                f"compare: {name} must have options, such as {{loss: rft}}, got {options!r}"
            )
        for key in options:
            if key not in MAY_DIFFER:
                raise ValueError(
                    f"compare: {name}: {key} is not one of what may differ between methods: "
                    f"{', '.join(MAY_DIFFER)}"
                )


def options_of(training: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The training's settings for a compared method: the run's without its loss, and its own.

    Args:
        training: the run's.
        options: of the method.
    """
    shared = {name: value for name, value in training.items() if name not in OF_LOSS}
    return {**shared, **options}


def phase_of(name: str) -> str:
    """The phase of a method's training, in titles and in metrics.jsonl."""
    return f"{FOLDER}/{name}"


def folder_of(root: Path, name: str) -> Path:
    """The folder of a compared method in a run folder."""
    return root / FOLDER / name
