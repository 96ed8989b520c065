"""One training of a run: it goes on from its last whole checkpoint, shows where it is, and leaves an ordinary model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.files import replacing
from pad_fast.pipeline.run import Run, round_seed
from pad_fast.training.trainer import PADTrainer

SHOWN = ("loss", "ranking/kendall_tau", "ranking/top1", "rewards/margins")


def trainable(run: Run, student: Checkpoint) -> Any:
    """The student's weights in the data type to train in."""
    return dataclasses.replace(student, dtype=run.config.train_dtype).model


def fit(trainer: Trainer, run: Run, round: int, phase: str, target: Path) -> None:
    """Train and save the model with its tokenizer as `target`."""
    folder = Path(str(trainer.args.output_dir))
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(TitledProgress(f"round {round}/{run.config.rounds} · {phase}"))
    trainer.add_callback(MetricsLines(run, round, phase))
    last = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    with replacing(target) as temporary:
        trainer.save_model(str(temporary))
        if isinstance(trainer, PADTrainer):
            (temporary / "README.md").write_text(
                trainer.card_body(str(run.config.student), _note(run, round)), encoding="utf-8"
            )


def _note(run: Run, round: int) -> str:
    config = run.config
    sampled = f"{config.num_generations} responses a prompt were sampled from it at temperature {config.temperature}"
    return f"This is round {round} of a run; in each {sampled} and scored by the teacher {Path(str(config.teacher)).name}."


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint of a trainer's folder. One that the trainer was killed within is removed.

    The trainer writes its state last, so a checkpoint with a readable state is whole.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            whole.append(
                (
                    int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]),
                    checkpoint,
                )
            )
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return max(whole)[1] if whole else None


class TitledProgress(ProgressCallback):
    """The trainer's bar with the phase as its title and the latest metrics at its end, in place of a line for each log."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)
            self.training_bar.unit = "step"

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {name.rpartition("/")[2]: f"{logs[name]:.3g}" for name in SHOWN if name in logs}
            if shown:
                self.training_bar.set_postfix(shown)


class MetricsLines(TrainerCallback):
    """Every log of the trainer as a line of metrics.jsonl."""

    def __init__(self, run: Run, round: int, phase: str) -> None:
        self.run, self.round, self.phase = run, round, phase

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and state.is_world_process_zero:
            self.run.metrics.add(self.round, state.global_step, self.phase, logs)


def pad_dataset(path: Path) -> Dataset:
    """The scored shards of a round, with the columns that PADTrainer reads."""
    columns = ["prompt_ids", "completion_ids", "finish_reasons", "teacher_rewards"]
    return Dataset(
        pa.concat_tables(
            pq.read_table(shard, columns=columns) for shard in sorted(path.glob("part-*.parquet"))
        )
    )


def drop_checkpoints(folder: Path) -> None:
    """Remove a trainer's folder, which served to get to the student that stands now."""
    shutil.rmtree(folder, ignore_errors=True)


def train_round(run: Run, round: int) -> None:
    """The student of `round` from that of the round before and the scored responses of the round."""
    folder, before = run.folder.round(round), run.student(round - 1)
    args = run.settings.pad_config(folder / "trainer", round_seed(run.config.seed, round, "train"))
    trainer = PADTrainer(
        model=trainable(run, before),
        args=args,
        train_dataset=pad_dataset(folder / "scores"),
        processing_class=before.tokenizer,
    )
    fit(trainer, run, round, "train", run.folder.student(round))
