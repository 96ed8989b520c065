"""The time of a training step, tried with the trainers of a run on a model of a few layers."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from pad_fast.device import default_device, synchronize
from pad_fast.pipeline.train.adapter import with_adapter
from pad_fast.plan.case import Case
from pad_fast.plan.work import STUDENT
from pad_fast.training.config import PADConfig
from pad_fast.training.trainer import PADTrainer

STEPS = 3  # the first one is slower, and left out
# Steps of one micro-batch, after which nothing is kept.
SHORT = {
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "push_to_hub": False,
}


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training.

    Attributes:
        micro_batch: forward and backward of one.
        rest: of a step, such as the optimizer and the norm of the gradient.
        start: before the first step, such as the trial of layouts.
    """

    micro_batch: float
    rest: float
    start: float


def trained_preferences(case: Case, model: Any, settings: dict[str, Any]) -> StepTimes:
    """Steps of one micro-batch each of PADTrainer."""
    prompt, n = case.lengths[STUDENT].mean, case.config.responses_per_prompt
    response = case.shape(prompt, case.response).response
    batch = settings["per_device_train_batch_size"]
    rows = [
        {
            "prompt_ids": _ids(model, prompt, place),
            "completion_ids": [_ids(model, response, place * n + i) for i in range(n)],
            "teacher_rewards": [float(i) for i in range(n)],
        }
        for place in range(STEPS * batch)
    ]
    changes = {
        "share_prefix": str(settings["share_prefix"]).lower(),
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "per_device_train_batch_size": batch,
        "max_tokens_per_step": case.max_tokens(settings),
    }

    def trainer(args: PADConfig) -> Trainer:
        return PADTrainer(model=_adapted(case, model), args=args, train_dataset=rows)

    return _timed(case, trainer, changes)


def trained_answers(case: Case, model: Any, batch: int) -> StepTimes:
    """Steps of one micro-batch each of the trainer on the teacher's answers."""
    tokens = case.lengths[STUDENT].mean + case.response
    rows = [_ids(model, tokens, place) for place in range(STEPS * batch)]
    data = Dataset.from_list(
        [{"input_ids": ids, "attention_mask": [1] * tokens, "labels": ids} for ids in rows]
    )
    collator = DataCollatorForSeq2Seq(case.student.tokenizer)

    def trainer(args: PADConfig) -> Trainer:
        adapted = _adapted(case, model)
        return Trainer(model=adapted, args=args, train_dataset=data, data_collator=collator)

    return _timed(case, trainer, {"per_device_train_batch_size": batch})


def _adapted(case: Case, model: Any) -> Any:
    return with_adapter(model, case.config) if case.config.use_peft else model


def _timed(case: Case, make: Callable[[PADConfig], Trainer], changes: dict[str, Any]) -> StepTimes:
    with tempfile.TemporaryDirectory() as folder:
        args = _arguments(case, Path(folder), changes)
        trainer, clock = make(args), _Clock()
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        started = time.perf_counter()
        trainer.train()
        return StepTimes(clock.micro_batch, clock.rest, clock.begins[0] - started)


def _arguments(case: Case, folder: Path, changes: dict[str, Any]) -> PADConfig:
    """The run's arguments, for a few steps that leave nothing."""
    run = copy.copy(case.config)
    run.prompts_per_step, run.disable_tqdm = None, True
    run.share_prefix = changes.pop("share_prefix", run.share_prefix)
    if case.training.chooses_teacher_beta:
        changes = {**changes, "teacher_beta": 1.0}
    return dataclasses.replace(case.run.settings, run=run).pad_config(
        folder, **{**changes, **SHORT, "max_steps": STEPS}
    )


class _Clock(TrainerCallback):
    """The times of a trainer's steps, and of the optimizer in them."""

    def __init__(self) -> None:
        self.begins, self.halves, self.ends = list[float](), list[float](), list[float]()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begins.append(_now())

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.halves.append(_now())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(_now())

    @property
    def micro_batch(self) -> float:
        """The faster of the later steps, up to the optimizer."""
        return min(b - a for a, b in zip(self.begins[1:], self.halves[1:], strict=True))

    @property
    def rest(self) -> float:
        """The optimizer's part of the faster of the later steps."""
        return min(b - a for a, b in zip(self.halves[1:], self.ends[1:], strict=True))


def _now() -> float:
    synchronize(default_device())
    return time.perf_counter()


def _ids(model: Any, length: int, seed: int) -> list[int]:
    """Random token ids."""
    size = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size, (length,), generator=generator).tolist()
