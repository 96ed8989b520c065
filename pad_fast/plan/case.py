"""What is planned: a run, its prompts, and the machine it is planned for."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from pad_fast.files.system_errors import first_line
from pad_fast.footprint.fakes import count_parameters, fake, sharing_problem, with_fake_part
from pad_fast.footprint.four_bits import pack_in_4_bits
from pad_fast.footprint.steps import GroupShape, Reading, TrainingOptions
from pad_fast.models.causal_lm import causal_lm
from pad_fast.pipeline import batch_sizes
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.chosen_batches import models_of
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.multiple_choice import choice_question
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.score.asked_questions import configured_questions
from pad_fast.pipeline.server_settings import is_served
from pad_fast.pipeline.train.adapter import with_adapter
from pad_fast.pipeline.train.train_round import may_leave_weights_unused
from pad_fast.plan.machine import Machine
from pad_fast.plan.work import Counts
from pad_fast.training.batch_layout import checkpoints_activations, head_budget, tokens_that_fit
from pad_fast.training.config import PADConfig

# Bytes of state for each weight, by a part of the optimizer's name.
SMALL_OPTIMIZERS = {"8bit": 2.0, "sgd": 0.0, "adafactor": 0.0}


@dataclass(frozen=True)
class Lengths:
    """The tokens of each prompt, for one model."""

    tokens: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.tokens)

    @property
    def mean(self) -> int:
        return math.ceil(sum(self.tokens) / len(self.tokens))

    def quantile(self, share: float) -> int:
        """The least length that ``share`` of the prompts do not exceed."""
        return sorted(self.tokens)[max(0, math.ceil(share * len(self.tokens)) - 1)]


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run, each on a device of its own.

    Attributes:
        number: of processes.
        split: whether weights, gradients and the optimizer's state are split over them (FSDP,
            ZeRO-3) while the student is trained.
        averaged: whether each holds all gradients, which DDP averages.
    """

    number: int = 1
    split: bool = False
    averaged: bool = False


@dataclass(frozen=True)
class Case:
    """A run as it is planned.

    Attributes:
        run: its settings and models.
        counts: of its prompts.
        lengths: of the prompts, for each model's role.
        machine: that is planned for.
        response: tokens of a typical response, for the times.
        bf16: whether training is under bfloat16 autocast.
        ranks: that share the work.
    """

    run: RunContext
    counts: Counts
    lengths: dict[str, Lengths]
    machine: Machine
    response: int
    bf16: bool
    ranks: Ranks = Ranks()

    @property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def training(self) -> PADConfig:
        return self.run.training

    @cached_property
    def student(self) -> Checkpoint:
        return self.run.student(0)

    def model(self, role: str) -> Checkpoint:
        """The checkpoint of a role."""
        return self.student if role == "student" else getattr(self.run, role)

    def served(self, role: str) -> bool:
        """Whether servers run the model of a role."""
        return is_served(self.config, role)

    def batch_tokens(self, name: str) -> int:
        """The most tokens of a batch of sampling or of scoring, by the name of the setting."""
        if getattr(self.config, name) is None and name not in self._batches:
            models, machine = models_of(self.run, name), self.machine
            self._batches[name] = batch_sizes.tokens_that_fit(
                name, self.config, models, machine.memory, gpu=machine.is_gpu
            )
        return getattr(self.config, name) or self._batches[name]

    @cached_property
    def _batches(self) -> dict[str, int]:
        return {}

    # Reading.

    @cached_property
    def can_share(self) -> bool:
        """Whether the student reads a prompt once for all of its responses."""
        return sharing_problem(self.student.config, self.config.attn_implementation) is None

    def reading(self, role: str, shared: bool) -> Reading:
        """How a model of the run reads rows, given whether prompts are to be shared."""
        attention = self.config.attn_implementation
        if shared and role == "reward_model":
            shared = False
        elif shared:
            shared = sharing_problem(self.model(role).config, attention) is None
        return Reading(shared, self.machine.is_gpu, attention, self.machine.memory)

    @property
    def shares(self) -> bool:
        """Whether scoring is to share prompts."""
        return self.config.share_prefix != "false"

    def dtype(self, role: str) -> torch.dtype:
        """The data type in which a model samples and scores."""
        return self.model(role).loaded_dtype

    # Questions.

    def question_tokens(self, n: int, prompt: int, response: int) -> tuple[int, int]:
        """The tokens of a question about ``n`` responses, and how many responses it shows."""
        teacher, questions = self.run.teacher, configured_questions(self.config, n)
        shown = len(questions[0])
        frame = choice_question("", [""] * shown, self.config.mcq_template)
        framed, empty = (
            len(teacher.prompt_ids([{"role": "user", "content": text}])) for text in (frame, "-")
        )
        return prompt + framed - empty + shown * response, shown

    # Training.

    @property
    def trained_bytes(self) -> int:
        """Of the files of a trained student's weights."""
        return count_parameters(self.student.config) * self.training_options.dtype.itemsize

    @cached_property
    def train_settings(self) -> dict[str, Any]:
        """The run's settings that a step's memory and time depend on, with "auto" resolved."""
        training = self.training
        batch, accumulated = training.per_device_train_batch_size, None
        if self.config.prompts_per_step is not None:
            share = max(1, self.config.prompts_per_step // self.ranks.number)
            batch = min(batch, share)
            accumulated = math.ceil(share / batch)
        return {
            "share_prefix": self.can_share and training.share_prefix != "false",
            "gradient_checkpointing": checkpoints_activations(training),
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulated or training.gradient_accumulation_steps,
            "max_tokens_per_step": training.max_tokens_per_step,
        }

    @property
    def prompts_in_step(self) -> int:
        """Prompts of an optimizer step, over all ranks."""
        settings = self.train_settings
        micro = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        return micro * self.ranks.number

    def steps(self, prompts: int) -> int:
        """Optimizer steps of a training on so many prompts."""
        an_epoch = math.ceil(prompts / self.prompts_in_step)
        return math.ceil(an_epoch * self.training.num_train_epochs)

    def max_tokens(self, settings: dict[str, Any]) -> int | None:
        """The most tokens of one forward and backward: the setting, or the trainer's choice."""
        given = settings["max_tokens_per_step"]
        if given is not None or not self.machine.is_gpu or self.ranks.split:
            return given
        options = self.training_options
        with fake():
            return tokens_that_fit(
                causal_lm(options.model(self.student.config, self.config.attn_implementation)),
                self.machine.memory,
                width=2 if self.bf16 else options.dtype.itemsize,
                checkpointing=settings["gradient_checkpointing"],
                budget=options.memory_budget,
            )

    @cached_property
    def training_options(self) -> TrainingOptions:
        """How a step is taken, apart from :attr:`train_settings`."""
        dtype = getattr(torch, self.config.train_dtype)
        name = str(getattr(self.training.optim, "value", self.training.optim))
        state = next((size for part, size in SMALL_OPTIMIZERS.items() if part in name), None)
        return TrainingOptions(
            dtype,
            self.bf16,
            optimizer_bytes=state,
            memory_budget=head_budget(self.training),
            prepared=self._with_adapter if self.config.use_peft else None,
            buckets=self._buckets,
        )

    @property
    def _buckets(self) -> str | None:
        """Where gradients of several micro-batches lie under DDP, see TrainingOptions."""
        if not self.ranks.averaged:
            return None
        searches = self.training.ddp_find_unused_parameters
        if searches is None:
            searches = may_leave_weights_unused(self.student.config)
        return "beside" if searches or self.training.ddp_static_graph else "in"

    def _with_adapter(self, model: Any) -> Any:
        """The model as a training of an adapter has it."""
        if self.config.load_in_4bit:
            pack_in_4_bits(model)
        made = partial(with_adapter, config=self.config, low_cpu_mem_usage=True)
        return with_fake_part(model, made)

    def shape(self, prompt: int, response: int | None = None) -> GroupShape:
        """A group that is trained; by default its responses are as long as they may be."""
        longest = self._longest_response(prompt)
        response = longest if response is None else min(response, longest)
        return GroupShape(prompt, response, self.config.responses_per_prompt)

    def _longest_response(self, prompt: int) -> int:
        """The most tokens of a response that is trained after a prompt of so many tokens."""
        limits = [self.config.max_new_tokens, self.training.max_completion_length]
        together = [self.training.max_length, self.student.window]
        limits += [limit - prompt for limit in together if limit is not None]
        return max(1, min(limit for limit in limits if limit is not None))


@contextlib.contextmanager
def counted(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise ValueError for a model whose steps cannot be counted without its weights."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # which prints what it cannot do
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    except Exception as error:  # a model may fail in any way on tensors without values
        raise ValueError(
            f"{checkpoint.role}: a step of {checkpoint.path} ({type(checkpoint.config).__name__}) "
            f"cannot be counted without its weights: {first_line(error)}; a run needs no plan, and "
            "`pad-fast doctor` tries both models on a few prompts"
        ) from error
    finally:
        logger.disabled = before


def group_tokens(shape: GroupShape, reading: Reading) -> int:
    """The tokens that are read for a prompt and its responses."""
    prompt, response, n = shape
    return prompt + n * response if reading.shared else n * (prompt + response)
