"""The peak memory of each kind of work: the longest prompt with responses of the greatest length.

On a CPU the process itself is added, with the libraries that it has loaded and the products that
oneDNN keeps, and what a file of weights takes while it is mapped. A GPU's numbers are those of
PyTorch's allocator.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property
from typing import Any

from pad_fast.allocator import KEPT_PRODUCTS, PRODUCT_BYTES
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.classifiers import classified_batch
from pad_fast.footprint.meter import Footprint
from pad_fast.footprint.steps import GroupShape, Held, Reading, TrainingOptions
from pad_fast.pipeline.batch_sizes import REWARD_MODEL, held_bytes, spared_bytes
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.data_types import AUTO, stored_dtype
from pad_fast.plan.case import Case, counted, group_tokens
from pad_fast.plan.work import STUDENT

GATHERED = 2  # layers that a rank holds whole while weights are split: one in use, one on its way


class Peaks:
    """Estimates of a run's peaks, in bytes.

    Args:
        case: what is planned.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.config, self.base = case, case.config, case.machine.process
        if self.base:  # a CPU, and this one
            self.base += KEPT_PRODUCTS * PRODUCT_BYTES
        self._trained: dict[Any, Footprint] = {}
        self.sampled, self.scored = cache(self._sampled), cache(self._scored)
        self._saved = cache(self._count_saved)

    # Work.

    def load(self, role: str) -> int:
        """A model's weights, and on a CPU the largest file that they are converted from."""
        checkpoint, dtype = self.case.model(role), self.case.dtype(role)
        files = {stored_dtype(checkpoint, AUTO)}
        if role == STUDENT:  # a trained one is stored as it was trained
            files.add(self.case.training_options.dtype)
        converted = [] if self.case.machine.is_gpu else [file for file in files if file != dtype]
        mapped = max((held_bytes(checkpoint, file) for file in converted), default=0)
        return self.base + held_bytes(checkpoint, dtype) + mapped

    def sample(self, role: str, n: int, prompts: int, max_tokens: int) -> tuple[int, int]:
        """The number of prompts in the largest batch of a piece, and its peak."""
        longest = self.case.lengths[role].longest
        size = min(prompts, self.prompts_of_batch(longest, max(1, n), max_tokens))
        shape = GroupShape(longest, self.config.max_new_tokens, size * max(1, n))
        return size, self.base + max(part.peak for part in self.sampled(role, shape))

    def score(self, role: str, n: int, prompts: int, max_tokens: int) -> int:
        """Log-probabilities of responses, in batches of so many tokens."""
        longest = self.case.lengths[role].longest
        reading = self.case.reading(role, self.case.shares)
        shape = GroupShape(longest, self.config.max_new_tokens, n)
        size = min(prompts, max(1, max_tokens // group_tokens(shape, reading)))
        return self.base + self.scored(role, size, shape, max_tokens, reading).peak

    def ask(self, n: int, prompts: int, questions: int, max_tokens: int) -> tuple[int, int]:
        """The number of questions in a batch, and its peak."""
        longest = self.case.lengths["teacher"].longest
        tokens, _ = self.case.question_tokens(n, longest, self.config.max_new_tokens)
        tokens = min(tokens, self.case.run.teacher.window or tokens)  # longer ones are not asked
        size = min(max(1, max_tokens // tokens), prompts * questions)
        reading = self.case.reading("teacher", False)
        shape = GroupShape(tokens, 1, 1)
        found = self.scored("teacher", size, shape, size * tokens, reading)
        return size, self.base + found.peak

    def train(self, settings: dict[str, Any]) -> int:
        """A micro-batch of the longest prompts, with the optimizer's state and the gradients."""
        found = self.trained(settings, self.case.shape(self.case.lengths[STUDENT].longest))
        return self.base + self._of_a_rank(found.peak)

    def train_answers(self, settings: dict[str, Any]) -> int:
        """A micro-batch of one answer to each of the longest prompts, with all of its logits."""
        prompt, response, _ = self.case.shape(self.case.lengths[STUDENT].longest)
        options, config = self._options(settings), self.case.student.config
        prompts = settings["per_device_train_batch_size"]
        with counted(self.case.student):
            found = footprint.answers_step(config, prompts, prompt + response, options)
        return self.base + self._of_a_rank(found.peak)

    # Batches.

    def prompts_of_batch(self, prompt: int, n: int, max_tokens: int) -> int:
        """How many prompts of this length are sampled together."""
        return max(1, max_tokens // ((prompt + self.config.max_new_tokens) * n))

    # Footprints.

    def trained(self, settings: dict[str, Any], shape: GroupShape) -> Footprint:
        """A micro-batch of the training."""
        key = (*sorted(settings.items()), shape)
        if key not in self._trained:
            self._trained[key] = self._count_training(settings, shape)
        return self._trained[key]

    def _count_training(self, settings: dict[str, Any], shape: GroupShape) -> Footprint:
        case, options = self.case, self._options(settings)
        reading = case.reading(STUDENT, settings["share_prefix"])
        prompts = settings["per_device_train_batch_size"]
        with counted(case.student):
            return footprint.training_step(case.student.config, prompts, shape, options, reading)

    def _options(self, settings: dict[str, Any]) -> TrainingOptions:
        return replace(
            self.case.training_options,
            checkpointing=settings["gradient_checkpointing"],
            accumulating=settings["gradient_accumulation_steps"] > 1,
            max_tokens=self.case.max_tokens(settings),
        )

    def _of_a_rank(self, peak: int) -> int:
        """The peak of a rank that holds a part of weights, gradients and optimizer's state."""
        ranks = self.case.ranks
        if not ranks.split or ranks.number == 1:
            return peak
        held, text = sum(self.held), self.case.student.config.get_text_config()
        layer = self.held.weights // max(1, text.num_hidden_layers)
        return round(peak - held + held / ranks.number + GATHERED * layer)

    @cached_property
    def held(self) -> Held:
        """What the training holds apart from activations."""
        with counted(self.case.student):
            return footprint.held_by_training(self.case.student.config, self.case.training_options)

    def _sampled(self, role: str, shape: GroupShape) -> tuple[Footprint, Footprint]:
        checkpoint, attention = self.case.model(role), self.config.attn_implementation
        with counted(checkpoint):
            dtype = self.case.dtype(role)
            first, last = footprint.sampling_batch(checkpoint.config, shape, dtype, attention)
            return self._packed(role, first), self._packed(role, last)

    def _scored(
        self, role: str, prompts: int, shape: GroupShape, max_tokens: int, reading: Reading
    ) -> Footprint:
        checkpoint: Checkpoint = self.case.model(role)
        with counted(checkpoint):
            dtype, config = self.case.dtype(role), checkpoint.config
            if role == REWARD_MODEL:
                length = shape.prompt + shape.response
                rows = max(1, min(prompts * shape.responses, max_tokens // length))
                found = classified_batch(config, rows, length, dtype, reading.attention)
            else:
                found = footprint.scoring_batch(config, prompts, shape, dtype, max_tokens, reading)
            return self._packed(role, found)

    def _packed(self, role: str, found: Footprint) -> Footprint:
        """The footprint of a model whose weights may be quantised."""
        saved = self._saved(role)
        return replace(found, start=found.start - saved, peak=found.peak - saved)

    def _count_saved(self, role: str) -> int:
        checkpoint = self.case.model(role)
        return spared_bytes(checkpoint, self.case.dtype(role))
