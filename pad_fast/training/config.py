"""PADConfig: what a training run is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from pad_fast.dispatch import check_impl
from pad_fast.losses import GROUP_REDUCTIONS, METHODS, MIN_SAMPLES
from pad_fast.models.layout import check_share_prefix
from pad_fast.preference.kinds import LOSSES
from pad_fast.validation import check_budget

CHOICES = {
    "method": METHODS,
    "group_reduction": GROUP_REDUCTIONS,
    "normalize": ("mean", "sum"),
}
PPD_ONLY = ("teacher_beta", "divergence", "method", "num_samples")  # what vpd has no use for


@dataclass
class PADConfig(TrainingArguments):
    """Arguments of :class:`pad_fast.PADTrainer`: those of transformers.TrainingArguments, and these.

    Where the paper or its released scripts speak (PAD, arXiv 2502.14272) their value is the default: learning rate 8e-7 on a
    cosine with a warm-up of a tenth, one epoch, no weight decay, beta 10, sequences of 2,048 tokens, checkpointed activations, no
    dropout, bf16 (here: where the device is a GPU that has it). Its 128 prompts a step are per_device_train_batch_size *
    gradient_accumulation_steps * ranks, which is yours to split. A batch is counted in prompts, each with all of its responses.

    Raises ValueError for a value outside of its range, naming it.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012, Trainer's own is a list too
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "chat_template_kwargs",
    ]

    learning_rate: float = field(default=8e-7, metadata={"help": "Initial learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(
        default=0.1,
        metadata={"help": "Steps of linear warm-up; below 1, their share of all steps."},
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    logging_steps: float = field(
        default=10,
        metadata={"help": "Steps between two lines of metrics; below 1, a share of all steps."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 autocast; weights stay as they are. By default on GPUs that have it, unless fp16."
        },
    )  # type: ignore[assignment]
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass, for memory; on by default. New name: activation_checkpointing."
        },
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Nothing to remove: the trainer keeps the columns that it reads."},
    )

    loss: str = field(
        default="ppd",
        metadata={
            "help": "ppd: match the distribution over rankings; vpd: maximise the likelihood of the teacher's ranking."
        },
    )
    beta: float = field(
        default=10.0,
        metadata={"help": "Scale of the student's rewards in the Plackett-Luce distribution."},
    )
    teacher_beta: float | None = field(
        default=None,
        metadata={"help": "Scale of the teacher's rewards, ppd only; beta if not given."},
    )
    divergence: str = field(
        default="jsd", metadata={"help": "ppd: jsd, kl (teacher to student) or reverse_kl."}
    )
    method: str = field(
        default="auto",
        metadata={"help": "ppd: exact, sampled rankings, or auto: exact as far as it goes."},
    )
    num_samples: int = field(
        default=256, metadata={"help": "Rankings that the sampled method draws for each prompt."}
    )
    group_size: int | None = field(
        default=None,
        metadata={"help": "Preference decomposing: responses are ranked in groups of this many."},
    )
    group_reduction: str = field(
        default="mean", metadata={"help": "Losses of a prompt's groups: mean or sum."}
    )
    normalize: str = field(
        default="mean",
        metadata={"help": "Reward of a response: mean or sum of its token log-probabilities."},
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "The student's log-probabilities are taken at this temperature."},
    )
    impl: str = field(default="auto", metadata={"help": "auto, torch or triton."})

    share_prefix: str = field(
        default="auto",
        metadata={
            "help": "Read a prompt once for all of its responses: auto, where a trial gives the same gradients; true; false."
        },
    )
    max_tokens_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of one forward and backward; a batch with more goes in slices, with one more forward and the same "
            "gradient. None: an estimate of what a GPU holds; no limit on a CPU."
        },
    )
    memory_budget: str = field(
        default="auto",
        metadata={
            "help": "Bytes in which the output head may keep scores for the backward, which saves one product in four: auto (a 16th of a "
            "GPU's memory, 128 MiB on a CPU) or a number; 0 takes the least memory."
        },
    )
    max_length: int | None = field(
        default=2048,
        metadata={
            "help": "Most tokens of prompt and response; a response beyond is cut by itself. None: the model's window."
        },
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Most tokens of a response."}
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={
            "help": "Leave responses out that do not end by themselves (finish reason length, or cut)."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set every dropout probability of the student to zero."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "More arguments for the chat template of conversational prompts."},
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that prepare the data."}
    )
    model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of from_pretrained for a model given by name; its dtype is float32 if not given."
        },
    )

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = True
        if (
            "activation_checkpointing" in self.__dataclass_fields__
        ):  # transformers 5.23 renamed it, and warns at the old name
            if self.activation_checkpointing is None:
                self.activation_checkpointing = self.gradient_checkpointing
            self.gradient_checkpointing = None  # mirrors the new name from here on
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = (
                False  # torch warns that there is nothing to pin memory for
            )
        self._check_options()
        super().__post_init__()

    def _check_options(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        kind = LOSSES[self.loss].kind(self.divergence)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        check_impl(self.impl)
        self.share_prefix = str(check_share_prefix(self.share_prefix)).lower()
        check_budget(
            int(self.memory_budget) if str(self.memory_budget).isdecimal() else self.memory_budget
        )
        self.memory_budget = str(self.memory_budget)
        for name in ("beta", "teacher_beta", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive finite number, got {value}")
        least = {
            "num_samples": MIN_SAMPLES,
            "group_size": 2,
            "max_length": 2,
            "max_completion_length": 1,
            "max_tokens_per_step": 1,
            "dataset_num_proc": 1,
        }
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise ValueError(f"{name} must be at least {limit}, got {value}")
        if self.loss == "vpd":
            for name in PPD_ONLY:
                if getattr(self, name) != self.__dataclass_fields__[name].default:
                    raise ValueError(
                        f"{name} is an option of loss='ppd', and loss is 'vpd'; got {getattr(self, name)!r}"
                    )
        elif self.group_size is not None:
            kind.check_exact(self.method, self.group_size)
