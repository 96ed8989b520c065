"""PADConfig: the arguments of a training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_bf16_gpu_available

from pad_fast import device
from pad_fast.argument_checks import check_budget, check_choice
from pad_fast.conversation.long_prompts import LONG_PROMPTS
from pad_fast.dispatch import check_impl
from pad_fast.models.layout import check_share_prefix
from pad_fast.secret_values import is_secret, without_secrets
from pad_fast.training.adapter_rate import FULL_RATE
from pad_fast.training.number_rules import RULES, problems
from pad_fast.training.options.argument import argument
from pad_fast.training.options.data import PARTS, DataArguments
from pad_fast.training.options.loss import LossArguments
from pad_fast.training.options.memory import MemoryArguments
from pad_fast.training.options.model import ModelArguments

# Trainer converts these itself, in messages that do not name the argument.
ENUMERATIONS: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}

# Arguments of Trainer that cannot act here: the only value of each that is taken, and why.
_ALL_REWARDS = "compute_metrics gets the rewards of a whole evaluation at once, and little else"
_NO_LABELS = "the loss is one of rankings, and has no labels"
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0.0, _NO_LABELS),
    "label_names": (None, _NO_LABELS),
    "include_for_metrics": ([], _ALL_REWARDS),
    "batch_eval_metrics": (False, _ALL_REWARDS),
    "eval_do_concat_batches": (True, _ALL_REWARDS),
    "eval_use_gather_object": (False, _ALL_REWARDS),
    "eval_accumulation_steps": (None, _ALL_REWARDS),
    "average_tokens_across_devices": (
        True,
        "the loss is the mean over the prompts of all devices, and counts no tokens",
    ),
    "include_num_input_tokens_seen": (
        "no",
        "a batch is a list of packed rows; perf/tokens_per_second is logged",
    ),
    "use_cache": (False, "no forward of the trainer keeps a cache"),
    "length_column_name": ("length", "prepared rows have their length in the column length"),
    "neftune_noise_alpha": (
        None,
        "the size of its noise depends on the length of a row, and a row holds several responses",
    ),
}


@dataclass
class PADConfig(LossArguments, DataArguments, ModelArguments, MemoryArguments, TrainingArguments):
    """The arguments of :class:`pad_fast.PADTrainer`: transformers.TrainingArguments, and these.

    Raises:
        ValueError: a value is out of its range; the message names it.

    Example:
        >>> args = PADConfig(output_dir="student", divergence="kl", teacher_beta=5.0)
        >>> args.beta, args.group_size
        (10.0, None)

    Notes:
        A batch is counted in prompts, each with all of its responses.

        Defaults are the values of the paper (PAD, arXiv 2502.14272) or of its released scripts,
        where these give one: learning rate 8e-7 on a cosine with a warm-up of a tenth, one epoch,
        no weight decay, beta 10, sequences of 2,048 tokens, recomputed activations, no dropout,
        and bf16 (here, on a GPU that has it).

        The paper takes 128 prompts for a step. That is per_device_train_batch_size *
        gradient_accumulation_steps * ranks, which are left to the user.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012, Trainer's own is a list too
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "chat_template_kwargs",
    ]

    # Arguments of TrainingArguments with another default.
    learning_rate: float = argument(  # a number once the arguments are made
        None, "Initial learning rate of AdamW. Default: 8.0e-7; with use_peft 8.0e-6."
    )
    lr_scheduler_type: str = argument("cosine", "Learning rate schedule.")
    warmup_steps: float = argument(
        0.1, "Steps of linear warm-up; a number below 1 is a share of all steps."
    )
    num_train_epochs: float = argument(1.0, "Passes over the data.")
    logging_steps: float = argument(
        10, "Steps from one line of metrics to the next; below 1, a share of all."
    )
    bf16: bool | None = argument(  # type: ignore[assignment]
        None,
        "Autocast to bfloat16; weights keep their dtype. By default on GPUs that have bfloat16, "
        "unless fp16 is set.",
    )
    gradient_checkpointing: bool | None = argument(
        None,
        "Recompute activations in the backward pass to save memory; on by default. Its new name is "
        "activation_checkpointing.",
    )
    remove_unused_columns: bool = argument(
        False, "Has no effect: the trainer keeps just the columns that it reads."
    )

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = FULL_RATE
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = True
        # transformers 5.23 renamed gradient_checkpointing, and warns at the old name.
        if "activation_checkpointing" in self.__dataclass_fields__:
            if self.activation_checkpointing is None:
                self.activation_checkpointing = self.gradient_checkpointing
            self.gradient_checkpointing = None  # mirrors the new name from here on
        if not device.has_accelerator():
            self.dataloader_pin_memory = False  # without one torch warns
        self._check_options()
        self.check_loss()
        super().__post_init__()
        self._check_effects()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle keeps: all but tokens, since training_args.bin is published."""
        hidden = {name: None for name in vars(self) if is_secret(name)}
        return {name: without_secrets(value) for name, value in vars(self).items()} | hidden

    def to_dict(self) -> dict[str, Any]:
        """Trainer's, which trackers show; a token within an option is left out too."""
        return without_secrets(super().to_dict())

    def _check_options(self) -> None:
        check_impl(self.impl)
        check_choice("long_prompts", self.long_prompts, LONG_PROMPTS)
        check_choice("train_on", self.train_on, PARTS)
        self.share_prefix = str(check_share_prefix(self.share_prefix)).lower()
        budget = str(self.memory_budget)
        check_budget(int(budget) if budget.isdecimal() else self.memory_budget)
        self.memory_budget = budget
        for name, kind in ENUMERATIONS.items():
            value = getattr(self, name, None)
            if value is not None and not isinstance(value, kind):
                check_choice(name, value, [str(member.value) for member in kind])
        for name, problem in problems(RULES, self):
            raise ValueError(f"{name} {problem}")

    def _check_effects(self) -> None:
        """Refuse what Trainer would take and PADTrainer would ignore."""
        for name, (usual, why) in WITHOUT_EFFECT.items():
            value = getattr(self, name, usual)  # a release may lack an argument
            if value != usual:
                raise ValueError(f"{name} must be {usual!r}, since {why}; got {value!r}")


def changed(args: PADConfig, **values: Any) -> PADConfig:
    """A copy of the arguments with other values. Nothing is checked or computed again."""
    mine = object.__new__(type(args))  # copy.copy would leave out tokens, as pickle has to
    vars(mine).update(vars(args), **values)
    return mine
