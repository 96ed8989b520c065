"""Training of a round, in addition to the settings of PADConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pad_fast.pipeline.option import option


@dataclass
class TrainOptions:
    """Training of a round, in addition to the settings of PADConfig."""

    train_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Data type of the trained weights. In bfloat16, updates of a small learning rate are lost "
        "to rounding.",
    )
    prompts_per_step: int | None = option(
        None,
        "Prompts in one optimizer step over all processes. A run may then go on with another "
        "number of processes. Default: per_device_train_batch_size times "
        "gradient_accumulation_steps times the number of processes.",
    )
