"""A Trainer whose losses in the log are those of the whole training, also after a resume."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_fast.device import hidden_gpus
from pad_fast.training.gradient_buckets import OneSetOfGradients

KEY = "PADTrainer log"  # among the states of callbacks, in a checkpoint's trainer_state.json


class ResumableLog(OneSetOfGradients):
    """Trainer, with what it forgets at a resume kept in the checkpoint.

    Trainer begins its sums anew: the line that a checkpoint cut in two is a mean over the steps
    after it, and ``train_loss`` one over the last call of ``train``. Without a resume the lines are
    Trainer's, bit for bit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._start_log()
        super().__init__(*args, **kwargs)

    def _start_log(self) -> None:
        self._loss_before = 0.0  # over all steps up to the last line, a mean over the ranks
        self._loss_since: Tensor = torch.zeros(())  # over the steps since then, on this rank
        self._logged_step = 0
        self._resumed = False
        self._is_whole = True  # False after a checkpoint that does not hold the sums

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._start_log()
        output = super().train(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._count_loss(super().training_step(*args, **kwargs))

    def _count_loss(self, loss: Tensor) -> Tensor:
        """Add the loss of a micro-batch to the sum, as Trainer does, and return it."""
        since, counted = self._loss_since.to(loss.device), loss
        if self.args.logging_nan_inf_filter:
            steps = 1 + self.state.global_step - self._logged_step
            counted = torch.where(loss.isfinite(), loss, since / steps)
        self._loss_since = since + counted
        return loss

    def _loss_of_window(self) -> float:
        return self.accelerator.gather(self._loss_since.to(self.args.device)).mean().item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Trainer's own lines have a loss, and every rank writes them at the same step.
        if "loss" in logs:
            window = self._loss_of_window()
            if self._resumed:
                logs["loss"] = window / (self.state.global_step - self._logged_step)
            self._loss_before += window
            self._loss_since = torch.zeros(())
            self._logged_step = self.state.global_step
        if "train_loss" in logs and self._resumed:
            whole = self._loss_before + self._loss_of_window()
            logs["train_loss"] = whole / max(1, self.state.global_step)
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        kept = self._kept_log()  # by all ranks, which add their sums up
        if self._is_whole:
            self._states()[KEY] = kept
        super()._save_checkpoint(*args, **kwargs)
        self._states().pop(KEY, None)

    def _save_rng_state(self, output_dir: str) -> None:
        """Trainer's, without the states of GPUs that the training leaves alone."""
        with hidden_gpus(self.args.device):
            super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with hidden_gpus(self.args.device):
            super()._load_rng_state(checkpoint)

    def _load_callback_state(self) -> None:
        kept = self._states().pop(KEY, None)
        super()._load_callback_state()
        self._is_whole = self._resumed = kept is not None
        if kept is not None:
            self._restore_log(kept)

    def _states(self) -> dict[str, Any]:
        """The states of callbacks in trainer_state.json, which Trainer declares as a list."""
        states: Any = self.state.stateful_callbacks
        return states

    def _kept_log(self) -> dict[str, Any]:
        """What a resumed training needs to go on with its log, as JSON holds it."""
        return {
            "loss_before": self._loss_before,
            "loss_since": self._loss_of_window(),
            "logged_step": self._logged_step,
        }

    def _restore_log(self, kept: dict[str, Any]) -> None:
        self._loss_before = kept["loss_before"]
        self._loss_since = torch.tensor(kept["loss_since"])
        self._logged_step = kept["logged_step"]
