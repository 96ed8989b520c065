"""The arguments that PADConfig adds to TrainingArguments in groups, each a dataclass."""

from __future__ import annotations

from pad_fast.training.options.data import DataArguments
from pad_fast.training.options.loss import LossArguments
from pad_fast.training.options.memory import MemoryArguments
from pad_fast.training.options.model import ModelArguments

GROUPS: dict[str, type] = {
    "loss": LossArguments,
    "data": DataArguments,
    "model": ModelArguments,
    "memory": MemoryArguments,
}
