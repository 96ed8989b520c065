"""How the student is loaded and scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from pad_fast.training.options.argument import argument


@dataclass
class ModelArguments:
    """How the student is loaded and scored."""

    temperature: float = argument(1.0, "Temperature of the student's log-probabilities.")
    disable_dropout: bool = argument(True, "Set every dropout probability of the student to 0.")
    model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of from_pretrained for a model given by name. "
            "The dtype is float32 if not given."
        },
    )
