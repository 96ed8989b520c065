"""Peak memory and time of the phases of a run, from the models' configs and the prompts' lengths.

Peaks are those of the longest prompt with responses of the greatest length. Times are those of the
mean prompt: the flops of all matrix products at the rate of a plain product, and for sampling the
bytes that each token reads. They are lower bounds, without norms, the optimizer, Python and
transfers.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from pad_fast.footprint import fakes
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.meter import Footprint
from pad_fast.footprint.steps import GroupShape, Reading, TrainingOptions
from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.score.asked_questions import configured_questions
from pad_fast.plan.machine import Machine
from pad_fast.training.batch_layout import checkpoints_activations, head_budget, tokens_that_fit

ADAM_MOMENTS = 2  # each as large as the weights
# Bytes of state for each weight, by a part of the optimizer's name.
SMALL_OPTIMIZERS = {"8bit": 2.0, "sgd": 0.0, "adafactor": 0.0}


@dataclass(frozen=True)
class Estimate:
    """The peak and the time of a phase.

    Attributes:
        name: of the phase.
        batch: the size of a batch, in words.
        peak: bytes.
        seconds: of a round; for training, of a step.
        settings: the run's settings that were changed for this estimate.
    """

    name: str
    batch: str
    peak: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)


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


class Estimator:
    """Estimates the phases of one run.

    Args:
        run: its settings and models.
        lengths: of the prompts, for "student" and "teacher".
        machine: that is planned for.
        prompts: in a round.
        response: tokens of a typical response, for the times.
        bf16: whether training is under bfloat16 autocast.
    """

    def __init__(
        self,
        run: RunContext,
        lengths: dict[str, Lengths],
        machine: Machine,
        prompts: int,
        *,
        response: int,
        bf16: bool,
    ) -> None:
        self.run, self.config, self.training, self.lengths = run, run.config, run.training, lengths
        self.machine, self.prompts, self.response, self.bf16 = machine, prompts, response, bf16
        self.student, self.teacher = run.student(0), run.teacher

    # Phases.

    def sample(self, tokens: int | None = None) -> Estimate:
        """The student's responses to a round's prompts.

        ``tokens`` replaces the setting sample_batch_tokens.
        """
        max_tokens, n = tokens or self.config.sample_batch_tokens, self.config.num_generations
        longest, mean = self.lengths["student"].longest, self.lengths["student"].mean
        largest = self._prompts_of_batch(max_tokens, longest)
        worst = self._sampled(GroupShape(longest, self.config.max_new_tokens, largest * n))
        size = min(self._prompts_of_batch(max_tokens, mean), self.prompts)
        first, last = self._sampled(GroupShape(mean, self.response, size * n))
        # On average over the tokens the cache is half full.
        token = self.machine.seconds(last.flops, (first.start + last.start) / 2)
        batch_seconds = self.machine.seconds(first.flops) + self.response * token
        return Estimate(
            "sample",
            f"{largest} x {n} responses",
            max(part.peak for part in worst),
            math.ceil(self.prompts / size) * batch_seconds,
            _changed("sample_batch_tokens", tokens),
        )

    def score(self, tokens: int | None = None) -> Estimate:
        """The log-probabilities of a round's responses under the teacher.

        ``tokens`` replaces the setting score_batch_tokens.
        """
        max_tokens, n = tokens or self.config.score_batch_tokens, self.config.responses_per_prompt
        lengths = self.lengths["teacher"]
        reading = self._reading(self.teacher, self.config.share_prefix != "false")
        worst = GroupShape(lengths.longest, self.config.max_new_tokens, n)
        prompts = max(1, max_tokens // _tokens(worst, reading))
        peak = self._scored(prompts, worst, max_tokens, reading).peak
        usual = GroupShape(lengths.mean, self.response, n)
        flops = self._scored(1, usual, max_tokens, reading).flops
        seconds = self.prompts * self.machine.seconds(flops)
        changed = _changed("score_batch_tokens", tokens)
        return Estimate("score", f"{max_tokens:,} tokens", peak, seconds, changed)

    def choose(self, tokens: int | None = None) -> Estimate | None:
        """The multiple-choice questions of a round; None where the run asks none.

        ``tokens`` replaces the setting score_batch_tokens.
        """
        config, lengths = self.config, self.lengths["teacher"]
        max_tokens = tokens or config.score_batch_tokens
        questions = configured_questions(config, config.responses_per_prompt)
        if not questions:
            return None
        shown, reading = len(questions[0]), self._reading(self.teacher, False)
        frame = multiple_choice.choice_question("", [""] * shown, config.mcq_template)
        extra = len(self.teacher.prompt_ids([{"role": "user", "content": frame}]))
        longest = lengths.longest + shown * config.max_new_tokens + extra
        longest = min(longest, self.teacher.window or longest)  # a longer question is not asked
        size = max(1, max_tokens // longest)
        peak = self._scored(size, GroupShape(longest, 1, 1), size * longest, reading).peak
        usual = GroupShape(lengths.mean + shown * self.response + extra, 1, 1)
        flops = self._scored(1, usual, max_tokens, reading).flops
        seconds = self.prompts * len(questions) * self.machine.seconds(flops)
        changed = _changed("score_batch_tokens", tokens)
        return Estimate("choose", f"{size} questions", peak, seconds, changed)

    def train(self, **changes: Any) -> Estimate:
        """One optimizer step with all its micro-batches; ``changes`` replace settings."""
        settings, lengths = self.train_settings | changes, self.lengths["student"]
        prompts, limit = settings["per_device_train_batch_size"], self._max_tokens(settings)
        peak = self._trained(settings, self._shape(lengths.longest)).peak
        flops = self._trained(settings, self._shape(lengths.mean, self.response)).flops
        seconds = settings["gradient_accumulation_steps"] * self.machine.seconds(flops)
        slices = "" if limit is None else f", {limit:,} tokens at a time"
        batch = f"{prompts} x {self.config.responses_per_prompt} responses{slices}"
        return Estimate("train", batch, peak, seconds, changes)

    def alternatives(self) -> Iterator[Estimate]:
        """Training with one setting changed at a time, then with all that save memory."""
        given = self.train_settings
        if self._can_share:
            yield self.train(share_prefix=not given["share_prefix"])
        yield self.train(gradient_checkpointing=not given["gradient_checkpointing"])
        if given["per_device_train_batch_size"] > 1:
            # one prompt at a time, and as many in a step
            prompts = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
            yield self.train(per_device_train_batch_size=1, gradient_accumulation_steps=prompts)
        yield self._sliced()
        frugal = {} if given["gradient_checkpointing"] else {"gradient_checkpointing": True}
        if self._can_share and not given["share_prefix"]:
            frugal["share_prefix"] = True
        if frugal:
            yield self._sliced(**frugal)

    def _sliced(self, **changes: Any) -> Estimate:
        """Training with the largest slices that fit.

        The tokens of the step are halved until they fit; if none do, a slice is one response.
        """
        settings = self.train_settings | changes
        shape = self._shape(self.lengths["student"].longest)
        reading = self._reading(self.student, settings["share_prefix"])
        step = settings["per_device_train_batch_size"] * _tokens(shape, reading)
        limit = min(step, self._max_tokens(settings) or step) // 2
        while limit > shape.prompt + shape.response:
            peak = self._trained({**settings, "max_tokens_per_step": limit}, shape).peak
            if self.machine.fits(peak):
                break
            limit //= 2
        return self.train(**changes, max_tokens_per_step=max(1, limit))

    # Settings.

    @cached_property
    def train_settings(self) -> dict[str, Any]:
        """The run's settings that a step's memory and time depend on, with "auto" resolved."""
        return {
            "share_prefix": self._can_share and self.training.share_prefix != "false",
            "gradient_checkpointing": checkpoints_activations(self.training),
            "per_device_train_batch_size": self.training.per_device_train_batch_size,
            "gradient_accumulation_steps": self.training.gradient_accumulation_steps,
            "max_tokens_per_step": self.training.max_tokens_per_step,
        }

    @property
    def steps(self) -> int:
        """Optimizer steps of a round."""
        prompts = (
            self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps
        )
        return math.ceil(self.prompts / prompts * self.training.num_train_epochs)

    def _max_tokens(self, settings: dict[str, Any]) -> int | None:
        """The most tokens of one forward and backward: the setting, or the trainer's choice."""
        given = settings["max_tokens_per_step"]
        if given is not None or not self.machine.is_gpu:
            return given
        options = self._training_options
        with fakes.fake():
            return tokens_that_fit(
                fakes.fake_model(
                    self.student.config, options.dtype, self.config.attn_implementation
                ),
                self.machine.memory,
                width=2 if self.bf16 else options.dtype.itemsize,
                checkpointing=settings["gradient_checkpointing"],
                budget=options.memory_budget,
            )

    @cached_property
    def _can_share(self) -> bool:
        attention = self.config.attn_implementation
        return fakes.sharing_problem(self.student.config, attention) is None

    def _reading(self, checkpoint: Checkpoint, shared: bool) -> Reading:
        attention = self.config.attn_implementation
        if shared and checkpoint is self.teacher:
            shared = fakes.sharing_problem(checkpoint.config, attention) is None
        return Reading(shared, self.machine.is_gpu, attention, self.machine.memory)

    @cached_property
    def _training_options(self) -> TrainingOptions:
        dtype = getattr(torch, self.config.train_dtype)
        name = str(getattr(self.training.optim, "value", self.training.optim))
        small = next((size for part, size in SMALL_OPTIMIZERS.items() if part in name), None)
        state = ADAM_MOMENTS * dtype.itemsize if small is None else small
        budget = head_budget(self.training)
        return TrainingOptions(dtype, self.bf16, optimizer_bytes=state, memory_budget=budget)

    # Sizes.

    def _shape(self, prompt: int, response: int | None = None) -> GroupShape:
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

    def _prompts_of_batch(self, max_tokens: int, prompt: int) -> int:
        """How many prompts are sampled together."""
        tokens = (prompt + self.config.max_new_tokens) * self.config.num_generations
        return max(1, max_tokens // tokens)

    # Footprints.

    def _trained(self, settings: dict[str, Any], shape: GroupShape) -> Footprint:
        options = replace(
            self._training_options,
            checkpointing=settings["gradient_checkpointing"],
            accumulating=settings["gradient_accumulation_steps"] > 1,
            max_tokens=self._max_tokens(settings),
        )
        reading = self._reading(self.student, settings["share_prefix"])
        prompts = settings["per_device_train_batch_size"]
        with _counted(self.student):
            return footprint.training_step(self.student.config, prompts, shape, options, reading)

    def _sampled(self, shape: GroupShape) -> tuple[Footprint, Footprint]:
        dtype = stored_dtype(self.student, self.config.dtype)
        attention = self.config.attn_implementation
        with _counted(self.student):
            return footprint.sampling_batch(self.student.config, shape, dtype, attention)

    def _scored(
        self, prompts: int, shape: GroupShape, max_tokens: int, reading: Reading
    ) -> Footprint:
        dtype = stored_dtype(self.teacher, self.config.dtype)
        with _counted(self.teacher):
            return footprint.scoring_batch(
                self.teacher.config, prompts, shape, dtype, max_tokens, reading
            )


@contextlib.contextmanager
def _counted(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise ValueError for a model whose steps cannot be counted without its weights."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # which prints what it cannot do
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    except Exception as error:  # a model may fail in any way on tensors without values
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{checkpoint.role}: a step of {checkpoint.path} ({type(checkpoint.config).__name__}) "
            f"cannot be counted without its weights: {reason}; a run needs no plan, and "
            "`pad-fast doctor` tries both models on a few prompts"
        ) from error
    finally:
        logger.disabled = before


def _tokens(shape: GroupShape, reading: Reading) -> int:
    """The tokens that are read for a prompt and its responses."""
    prompt, response, n = shape
    return prompt + n * response if reading.shared else n * (prompt + response)


def stored_dtype(checkpoint: Checkpoint, asked: str) -> torch.dtype:
    """The data type that the run loads a checkpoint in; ``asked`` is its setting dtype."""
    if asked != "auto":
        return getattr(torch, asked)
    found = getattr(checkpoint.config.get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found), torch.float32)


def _changed(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}
