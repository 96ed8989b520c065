"""Peak memory and time of the phases of a run before it starts, from the models' configurations and the prompts' lengths alone.

Peaks are those of the longest prompt with responses as long as they may get; times are those of the mean prompt, from the flops of
all matrix products at the rate of a plain product, and for sampling from the bytes that each token reads: a floor, since norms,
optimizer, Python and transfers are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.score.quiz import configured_questions
from pad_fast.plan import footprint
from pad_fast.plan.footprint import Reading, Training
from pad_fast.plan.machine import Machine
from pad_fast.training.batch_layout import checkpoints_activations, head_budget, tokens_that_fit

ADAM_MOMENTS = 2  # each as large as the weights
SMALL_OPTIMIZERS = {
    "8bit": 2.0,
    "sgd": 0.0,
    "adafactor": 0.0,
}  # bytes a weight, by a part of the name


@dataclass(frozen=True)
class Estimate:
    """`peak` bytes and `seconds` (of a round; of a step for training) with the run's settings changed as `settings` says."""

    name: str
    batch: str
    peak: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompts for one model."""

    tokens: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.tokens)

    @property
    def mean(self) -> int:
        return math.ceil(sum(self.tokens) / len(self.tokens))

    def quantile(self, share: float) -> int:
        """The least length that `share` of the prompts do not exceed."""
        return sorted(self.tokens)[max(0, math.ceil(share * len(self.tokens)) - 1)]


class Estimator:
    """Estimates for one run; `response` is the typical length that times are about, `bf16` whether training is under autocast."""

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

    def sample(self, tokens: int | None = None) -> Estimate:
        """Responses of the student to a round's prompts; `tokens` in the place of sample_batch_tokens."""
        budget, n, longest = (
            tokens or self.config.sample_batch_tokens,
            self.config.num_generations,
            self.lengths["student"].longest,
        )
        worst = self._sampled(
            self._prompts_a_batch(budget, longest) * n, longest, self.config.max_new_tokens
        )
        mean = self.lengths["student"].mean
        size = min(self._prompts_a_batch(budget, mean), self.prompts)
        first, last = self._sampled(size * n, mean, self.response)
        step = self.machine.seconds(
            last.flops, (first.start + last.start) / 2
        )  # the cache is half full on average
        seconds = math.ceil(self.prompts / size) * (
            self.machine.seconds(first.flops) + self.response * step
        )
        batch = f"{self._prompts_a_batch(budget, longest)} x {n} responses"
        return Estimate(
            "sample",
            batch,
            max(part.peak for part in worst),
            seconds,
            _changed("sample_batch_tokens", tokens),
        )

    def score(self, tokens: int | None = None) -> Estimate:
        """Log-probabilities of a round's responses under the teacher; `tokens` in the place of score_batch_tokens."""
        budget, lengths, n = (
            tokens or self.config.score_batch_tokens,
            self.lengths["teacher"],
            self.config.num_generations,
        )
        reading = self._reading(self.teacher, self.config.share_prefix != "false")
        worst = (lengths.longest, self.config.max_new_tokens, n)
        peak = self._scored(max(1, budget // _tokens(worst, reading)), worst, budget, reading).peak
        usual = self._scored(1, (lengths.mean, self.response, n), budget, reading)
        seconds = self.prompts * self.machine.seconds(usual.flops)
        return Estimate(
            "score", f"{budget:,} tokens", peak, seconds, _changed("score_batch_tokens", tokens)
        )

    def choose(self, tokens: int | None = None) -> Estimate | None:
        """The multiple-choice questions of a round; None where none is asked."""
        config, lengths, budget = (
            self.config,
            self.lengths["teacher"],
            tokens or self.config.score_batch_tokens,
        )
        questions = configured_questions(config, config.num_generations)
        if not questions:
            return None
        shown, reading = len(questions[0]), self._reading(self.teacher, False)
        frame = multiple_choice.choice_question("", [""] * shown, config.mcq_template)
        extra = len(self.teacher.prompt_ids([{"role": "user", "content": frame}]))
        longest = lengths.longest + shown * config.max_new_tokens + extra
        longest = min(longest, self.teacher.window or longest)  # a longer question is not asked
        size = max(1, budget // longest)
        peak = self._scored(size, (longest, 1, 1), size * longest, reading).peak
        usual = self._scored(
            1, (lengths.mean + shown * self.response + extra, 1, 1), budget, reading
        )
        seconds = self.prompts * len(questions) * self.machine.seconds(usual.flops)
        return Estimate(
            "choose", f"{size} questions", peak, seconds, _changed("score_batch_tokens", tokens)
        )

    def train(self, **changes: Any) -> Estimate:
        """One step, of all its micro-batches, under the settings with `changes`."""
        settings, lengths = self.train_settings | changes, self.lengths["student"]
        prompts, limit = settings["per_device_train_batch_size"], self._limit(settings)
        usual = self._trained(settings, self._shape(lengths.mean, self.response))
        seconds = settings["gradient_accumulation_steps"] * self.machine.seconds(usual.flops)
        slices = "" if limit is None else f", {limit:,} tokens at a time"
        batch = f"{prompts} x {self.config.num_generations} responses{slices}"
        return Estimate(
            "train",
            batch,
            self._trained(settings, self._shape(lengths.longest)).peak,
            seconds,
            changes,
        )

    def _trained(self, settings: dict[str, Any], shape: footprint.Shape) -> footprint.Footprint:
        reading = self._reading(self.student, settings["share_prefix"])
        how = replace(
            self._how,
            checkpointing=settings["gradient_checkpointing"],
            accumulating=settings["gradient_accumulation_steps"] > 1,
            max_tokens=self._limit(settings),
        )
        return footprint.training_step(
            self.student.config, settings["per_device_train_batch_size"], shape, how, reading
        )

    def alternatives(self) -> Iterator[Estimate]:
        """Training under other settings than the run's: one changed at a time, then the frugal ones together."""
        given = self.train_settings
        if self._can_share:
            yield self.train(share_prefix=not given["share_prefix"])
        yield self.train(gradient_checkpointing=not given["gradient_checkpointing"])
        if given["per_device_train_batch_size"] > 1:
            prompts = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
            yield self.train(
                per_device_train_batch_size=1, gradient_accumulation_steps=prompts
            )  # as many a step
        yield self._sliced()
        frugal = {} if given["gradient_checkpointing"] else {"gradient_checkpointing": True}
        if self._can_share and not given["share_prefix"]:
            frugal["share_prefix"] = True
        if frugal:
            yield self._sliced(**frugal)

    def _sliced(self, **changes: Any) -> Estimate:
        """With the largest slices that fit, of all tokens halved again and again; with single responses where none fits."""
        settings, shape = (
            self.train_settings | changes,
            self._shape(self.lengths["student"].longest),
        )
        whole = settings["per_device_train_batch_size"] * _tokens(
            shape, self._reading(self.student, settings["share_prefix"])
        )
        limit = min(whole, self._limit(settings) or whole) // 2
        while limit > shape[0] + shape[1]:
            if self.machine.fits(
                self._trained({**settings, "max_tokens_per_step": limit}, shape).peak
            ):
                break
            limit //= 2
        return self.train(**changes, max_tokens_per_step=max(1, limit))

    @cached_property
    def train_settings(self) -> dict[str, Any]:
        """The settings of the run that memory and time of a step depend on, as they work out."""
        return {
            "share_prefix": self._can_share and self.training.share_prefix != "false",
            "gradient_checkpointing": checkpoints_activations(self.training),
            "per_device_train_batch_size": self.training.per_device_train_batch_size,
            "gradient_accumulation_steps": self.training.gradient_accumulation_steps,
            "max_tokens_per_step": self.training.max_tokens_per_step,
        }

    def _limit(self, settings: dict[str, Any]) -> int | None:
        """The tokens of a forward and backward: on a GPU, where none are given, those that the trainer takes by itself."""
        given = settings["max_tokens_per_step"]
        if given is not None or not self.machine.is_gpu:
            return given
        width = 2 if self.bf16 else self._how.dtype.itemsize
        with footprint.fake():
            model = footprint.fake_model(
                self.student.config, self._how.dtype, self.config.attn_implementation
            )
            options: dict[str, Any] = {
                "checkpointing": settings["gradient_checkpointing"],
                "budget": self._how.memory_budget,
            }
            return tokens_that_fit(model, self.machine.memory, width=width, **options)

    @cached_property
    def _can_share(self) -> bool:
        return (
            footprint.sharing_problem(self.student.config, self.config.attn_implementation) is None
        )

    def _reading(self, checkpoint: Checkpoint, shared: bool) -> Reading:
        attention = self.config.attn_implementation
        if shared and checkpoint is self.teacher:
            shared = footprint.sharing_problem(checkpoint.config, attention) is None
        return Reading(shared, self.machine.is_gpu, attention, self.machine.memory)

    def _shape(self, prompt: int, response: int | None = None) -> footprint.Shape:
        """Tokens of a prompt, of each response (as long as it may get if not given), and how many there are."""
        room = self._room(prompt)
        return (
            prompt,
            room if response is None else min(response, room),
            self.config.num_generations,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of a round."""
        a_step = (
            self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps
        )
        return math.ceil(self.prompts / a_step * self.training.num_train_epochs)

    @cached_property
    def _how(self) -> Training:
        dtype = getattr(torch, self.config.train_dtype)
        name = str(getattr(self.training.optim, "value", self.training.optim))
        small = next((size for part, size in SMALL_OPTIMIZERS.items() if part in name), None)
        state = ADAM_MOMENTS * dtype.itemsize if small is None else small
        return Training(
            dtype, self.bf16, optimizer_bytes=state, memory_budget=head_budget(self.training)
        )

    def _room(self, prompt: int) -> int:
        """The longest response that is trained after a prompt."""
        limits = [self.config.max_new_tokens, self.training.max_completion_length]
        whole = [self.training.max_length, self.student.window]
        limits += [limit - prompt for limit in whole if limit is not None]
        return max(1, min(limit for limit in limits if limit is not None))

    def _prompts_a_batch(self, budget: int, prompt: int) -> int:
        return max(
            1, budget // ((prompt + self.config.max_new_tokens) * self.config.num_generations)
        )

    def _sampled(
        self, responses: int, prompt: int, response: int
    ) -> tuple[footprint.Footprint, footprint.Footprint]:
        dtype = stored_dtype(self.student, self.config.dtype)
        return footprint.sampling_batch(
            self.student.config, responses, prompt, response, dtype, self.config.attn_implementation
        )

    def _scored(
        self, prompts: int, shape: footprint.Shape, max_tokens: int, reading: Reading
    ) -> footprint.Footprint:
        dtype = stored_dtype(self.teacher, self.config.dtype)
        return footprint.scoring_batch(
            self.teacher.config, prompts, shape, dtype, max_tokens, reading
        )


def _tokens(shape: footprint.Shape, reading: Reading) -> int:
    """Of a prompt and its responses, as they are read."""
    prompt, response, n = shape
    return prompt + n * response if reading.shared else n * (prompt + response)


def stored_dtype(checkpoint: Checkpoint, asked: str) -> torch.dtype:
    """The data type that the run loads a checkpoint in."""
    if asked != "auto":
        return getattr(torch, asked)
    found = getattr(checkpoint.config.get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found), torch.float32)


def _changed(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}
