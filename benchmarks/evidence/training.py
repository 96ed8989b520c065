"""Training one student with one method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback

from benchmarks.evidence.methods import Method
from benchmarks.evidence.token_kd import TokenKDTrainer
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.train.training_rows import live_tokens
from pad_fast.training.config import PADConfig
from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.prepared_rows import prepare_dataset
from pad_fast.training.trainer import PADTrainer


@dataclass(frozen=True)
class Plan:
    """How long and how fast a student is trained; the schedule is a cosine to zero.

    Args:
        steps, batch: optimizer steps, and prompts of each.
        learning_rate: at the start.
        beta: factor of the student's rewards; None for a method without.
        seed: of the order of the prompts.
        bf16: whether matrix products are computed in bfloat16; weights stay as they are.
    """

    steps: int
    batch: int
    learning_rate: float
    beta: float | None
    seed: int
    bf16: bool = False


@dataclass(frozen=True)
class Trained:
    """A trained student, and what it cost.

    Args:
        folder: of its weights and tokenizer.
        steps: that were done.
        tokens: that training read, see :class:`Reading`.
        reading: of each step.
        seconds: of training.
        loss: the last that was logged.
    """

    folder: Path
    steps: int
    tokens: int
    reading: Reading
    seconds: float
    loss: float


def train(
    method: Method, start: Path, teacher: Path, rows: Sequence[Row], plan: Plan, folder: Path
) -> Trained:
    """Train the student in ``start`` and save it in ``folder``.

    Args:
        method: its loss.
        start: folder of the student.
        teacher: folder of the teacher, which only the bound reads.
        rows: what :func:`benchmarks.evidence.methods.training_rows` gives.
        plan: how long and how fast.
        folder: for the trained student.
    """
    began = time.perf_counter()
    args = _arguments(method, plan, folder)
    kind: Any = TokenKDTrainer if method.is_bound else PADTrainer
    more = {"teacher": str(teacher)} if method.is_bound else {}
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(start),
        **more,
    )
    trainer.remove_callback(PrinterCallback)  # the study prints a line for each cell
    trainer.train()
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(folder)
    read = reading(method, rows)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Trained(
        folder,
        trainer.state.global_step,
        round(plan.steps * plan.batch * read.tokens),
        read,
        round(time.perf_counter() - began, 2),
        losses[-1],
    )


@dataclass(frozen=True)
class Reading:
    """What a training reads of the rows of its method.

    Args:
        tokens: that a step reads for a prompt, on average: its own once, and those of its
            responses. The trainer reads equal responses once, and leaves out a prompt with too
            few that differ.
        prompts: the share of the prompts that are not left out.
        answer_weight: the mean weight of the teacher's answer in a weighted likelihood, from 0 to
            1; None for a method without.
    """

    tokens: float
    prompts: float = 1.0
    answer_weight: float | None = None


def reading(method: Method, rows: Sequence[Row]) -> Reading:
    """What a training with a method reads of its rows."""
    if method.is_bound:  # which reads a row for each response
        tokens = sum(len(row["prompt_ids"]) + sum(map(len, row["completion_ids"])) for row in rows)
        return Reading(tokens / len(rows))
    args = PADConfig(output_dir="unused", report_to="none", **method.options)
    read = prepare_dataset(list(rows), RowReader(), least_live=args.least_live)
    weight = None
    if method.needs_answers and method.options.get("likelihood_on") == "weighted":
        weight = _answer_weight(read, args.likelihood_beta)
    return Reading(live_tokens(read) / len(read), len(read) / len(rows), weight)


def _answer_weight(rows: Dataset, likelihood_beta: float) -> float:
    """The mean over prepared rows of softmax(likelihood_beta * t) of the teacher's answer.

    Of equal responses the first alone has a reward, so that one has the answer's weight where a
    sample is the same.
    """
    found = []
    for row in rows:
        rewards = np.array(row["teacher_rewards"], float)  # NaN where a response is not read
        weights = np.exp(likelihood_beta * (rewards - np.nanmax(rewards)))
        answer = row["completion_ids"][row["from_teacher"].index(True)]
        own = [ids == answer for ids in row["completion_ids"]]
        found.append(np.nansum(weights[own]) / np.nansum(weights))
    return float(np.mean(found))


def _arguments(method: Method, plan: Plan, folder: Path) -> PADConfig:
    options = dict(method.options)
    if method.has_beta and plan.beta is not None:
        options["beta"] = plan.beta
    return PADConfig(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=max(1, plan.steps // 4),
        disable_tqdm=True,
        seed=plan.seed,
        bf16=plan.bf16,
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused there
        **options,
    )
