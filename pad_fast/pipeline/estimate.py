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

from pad_fast.models import footprint
from pad_fast.models.footprint import Training
from pad_fast.pipeline import calibration
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.machine import Machine
from pad_fast.pipeline.run import Run

ADAM_MOMENTS = 2  # each as large as the weights
SMALL_OPTIMIZERS = {"8bit": 2.0, "sgd": 0.0, "adafactor": 0.0}  # bytes a weight, by a part of the name


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

    def __init__(self, run: Run, lengths: dict[str, Lengths], machine: Machine, prompts: int, *, response: int, bf16: bool) -> None:
        self.run, self.config, self.training, self.lengths = run, run.config, run.training, lengths
        self.machine, self.prompts, self.response, self.bf16 = machine, prompts, response, bf16
        self.student, self.teacher = run.student(0), run.teacher

    def sample(self, tokens: int | None = None) -> Estimate:
        """Responses of the student to a round's prompts; `tokens` in the place of sample_batch_tokens."""
        budget, n, longest = tokens or self.config.sample_batch_tokens, self.config.num_generations, self.lengths["student"].longest
        worst = self._sampled(self._prompts_a_batch(budget, longest) * n, longest, self.config.max_new_tokens)
        mean = self.lengths["student"].mean
        size = min(self._prompts_a_batch(budget, mean), self.prompts)
        first, last = self._sampled(size * n, mean, self.response)
        step = self.machine.seconds(last.flops, (first.start + last.start) / 2)  # the cache is half full on average
        seconds = math.ceil(self.prompts / size) * (self.machine.seconds(first.flops) + self.response * step)
        batch = f"{self._prompts_a_batch(budget, longest)} x {n} responses"
        return Estimate("sample", batch, max(part.peak for part in worst), seconds, _changed("sample_batch_tokens", tokens))

    def score(self, tokens: int | None = None) -> Estimate:
        """Log-probabilities of a round's responses under the teacher; `tokens` in the place of score_batch_tokens."""
        budget, lengths = tokens or self.config.score_batch_tokens, self.lengths["teacher"]
        size = max(1, budget // (lengths.longest + self.config.max_new_tokens - 1))
        worst = self._scored(size, lengths.longest, self.config.max_new_tokens)
        one = self._scored(1, lengths.mean, self.response)
        seconds = self.prompts * self.config.num_generations * self.machine.seconds(one.flops)
        return Estimate("score", f"{size} responses", worst.peak, seconds, _changed("score_batch_tokens", tokens))

    def choose(self, tokens: int | None = None) -> Estimate | None:
        """The multiple-choice questions of a round; None where none is asked."""
        config, lengths = self.config, self.lengths["teacher"]
        plan = calibration.question_plan(config.num_generations, config.mcq_style, bool(config.mcq_both_orders), config.mcq_opponents)
        if not config.asks or not plan:
            return None
        shown = len(plan[0])
        frame = calibration.choice_question("", [""] * shown, config.mcq_template)
        extra = len(self.teacher.prompt_ids([{"role": "user", "content": frame}]))
        longest = lengths.longest + shown * config.max_new_tokens + extra
        longest = min(longest, self.teacher.window or longest)  # a longer question is not asked
        size = max(1, (tokens or config.score_batch_tokens) // longest)
        one = self._scored(1, lengths.mean + shown * self.response + extra, 1)
        seconds = self.prompts * len(plan) * self.machine.seconds(one.flops)
        return Estimate("choose", f"{size} questions", self._scored(size, longest, 1).peak, seconds, _changed("score_batch_tokens", tokens))

    def train(self, **changes: Any) -> Estimate:
        """One step, of all its micro-batches, under the settings with `changes`."""
        settings = self.train_settings | changes
        prompts, steps = settings["per_device_train_batch_size"], self.training.gradient_accumulation_steps
        # as many prompts a step whatever the micro-batch
        micro = max(1, round(self.train_settings["per_device_train_batch_size"] * steps / prompts))
        how = replace(self._how, checkpointing=settings["gradient_checkpointing"], accumulating=micro > 1)
        n = self.config.num_generations
        longest, mean = self.lengths["student"].longest, self.lengths["student"].mean
        worst = footprint.training_step(self.student.config, prompts, (longest, self._room(longest), n), how)
        usual = footprint.training_step(self.student.config, 1, (mean, min(self.response, self._room(mean)), n), how)
        seconds = self.machine.seconds(usual.flops) * prompts * micro
        return Estimate("train", f"{prompts} x {n} responses", worst.peak, seconds, changes)

    def alternatives(self) -> Iterator[Estimate]:
        """Training under other settings than the run's, the more frugal ones later."""
        given = self.train_settings
        if not given["gradient_checkpointing"]:
            yield self.train(gradient_checkpointing=True)
        else:
            yield self.train(gradient_checkpointing=False)
        if given["per_device_train_batch_size"] > 1:
            yield self.train(per_device_train_batch_size=1)
            if not given["gradient_checkpointing"]:
                yield self.train(per_device_train_batch_size=1, gradient_checkpointing=True)

    @cached_property
    def train_settings(self) -> dict[str, Any]:
        """The settings of the run that memory and time of a step depend on."""
        checkpointing = getattr(self.training, "activation_checkpointing", self.training.gradient_checkpointing)
        return {
            "per_device_train_batch_size": self.training.per_device_train_batch_size,
            "gradient_checkpointing": bool(checkpointing),
        }

    @property
    def steps(self) -> int:
        """Optimizer steps of a round."""
        a_step = self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps
        return math.ceil(self.prompts / a_step * self.training.num_train_epochs)

    @cached_property
    def _how(self) -> Training:
        dtype = getattr(torch, self.config.train_dtype)
        name = str(getattr(self.training.optim, "value", self.training.optim))
        small = next((size for part, size in SMALL_OPTIMIZERS.items() if part in name), None)
        state = ADAM_MOMENTS * dtype.itemsize if small is None else small
        return Training(dtype, self.bf16, optimizer_bytes=state, attention=self.config.attn_implementation)

    def _room(self, prompt: int) -> int:
        """The longest response that is trained after a prompt."""
        limits = [self.config.max_new_tokens, self.training.max_completion_length]
        whole = [self.training.max_length, self.student.window]
        limits += [limit - prompt for limit in whole if limit is not None]
        return max(1, min(limit for limit in limits if limit is not None))

    def _prompts_a_batch(self, budget: int, prompt: int) -> int:
        return max(1, budget // ((prompt + self.config.max_new_tokens) * self.config.num_generations))

    def _sampled(self, responses: int, prompt: int, response: int) -> tuple[footprint.Footprint, footprint.Footprint]:
        dtype = stored_dtype(self.student, self.config.dtype)
        return footprint.sampling_batch(self.student.config, responses, prompt, response, dtype, self.config.attn_implementation)

    def _scored(self, responses: int, prompt: int, response: int) -> footprint.Footprint:
        dtype = stored_dtype(self.teacher, self.config.dtype)
        return footprint.scoring_batch(self.teacher.config, responses, prompt, response, dtype, self.config.attn_implementation)


def stored_dtype(checkpoint: Checkpoint, asked: str) -> torch.dtype:
    """The data type that the run loads a checkpoint in."""
    if asked != "auto":
        return getattr(torch, asked)
    found = getattr(checkpoint.config.get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found), torch.float32)


def _changed(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}
