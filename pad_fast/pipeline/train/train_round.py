"""One training of a run, which resumes from its last complete checkpoint and saves a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from pad_fast.evaluation import model_names
from pad_fast.files.own_files import read_json
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.common_rows import common_rows
from pad_fast.pipeline.compared import folder_of, phase_of
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.phases import TRAIN
from pad_fast.pipeline.publish.model_card import responses_in_words, with_metadata
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.train.adapter import trainable
from pad_fast.pipeline.train.checkpoints import STATE, Checksums, last_checkpoint
from pad_fast.pipeline.train.saved_student import save_student
from pad_fast.pipeline.train.scored_rows import keep_scored_rows, with_anchor
from pad_fast.pipeline.train.training_rows import live_tokens
from pad_fast.progress.bar import Bar
from pad_fast.training.config import PADConfig
from pad_fast.training.trainer import PADTrainer

# What a bar shows of the logs, by the word for it; the first ones are seen in a narrow terminal.
SHOWN = {"loss": "loss", "ranking/kendall_tau": "tau", "ranking/top1": "top1"}


def fit(
    trainer: Trainer,
    run: RunContext,
    before: Checkpoint,
    round: int,
    phase: str,
    target: Path,
    tokens: int,
) -> None:
    """Train, and save the model with its tokenizer.

    Args:
        trainer: a trainer of the run's student.
        run: the run.
        before: the student that the training begins with.
        round: the round, for the progress bar and the metrics.
        phase: "train", "seqkd" for the baseline, or that of a compared method.
        target: the folder to save to. It exists only once it is complete.
        tokens: that one epoch reads, without padding.
    """
    folder = Path(str(trainer.args.output_dir))
    title = bar_title(run, round, phase)
    trainer.add_callback(MetricsLines(run, round, phase))
    trainer.add_callback(Checksums())
    found = last_checkpoint(folder, trainer.args) if run.ranks.is_main else None
    last = run.ranks.agree(None if found is None else str(found))
    for own in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(own)
    with train_bar(run, title) as bar, measured(title, "step") as work:
        trainer.add_callback(StepsOnBar(bar))
        trainer.train(resume_from_checkpoint=last)
        state, done = trainer.state, trainer.state.global_step
        done -= 0 if last is None else int(last.rpartition("-")[2])
        epochs = (state.epoch or 0.0) * done / max(1, state.global_step)
        work.add(done, int(tokens * epochs))
    card = None
    if isinstance(trainer, PADTrainer):
        text = trainer.card_body(str(run.config.student), _card_note(run, round))
        name = model_names.student(round) if phase == TRAIN.name else target.parent.name
        card = with_metadata(run, text, name)
    save_student(trainer, run, before, target, card)


def bar_title(run: RunContext, round: int, phase: str) -> str:
    """What the progress bar of a training is called."""
    return f"round {round}/{run.config.rounds} · {phase}"


def train_bar(run: RunContext, title: str) -> Bar:
    """A bar of steps, whose number is not known yet."""
    return Bar(title, "step", quiet=run.config.disable_tqdm or not run.ranks.is_main)


def loaded(run: RunContext, before: Checkpoint, title: str, seed: int) -> Any:
    """The student's model as it is trained, under a bar that says that it is loaded."""
    with train_bar(run, title):
        return trainable(run.config, before, seed)


def training_args(
    run: RunContext,
    before: Checkpoint,
    folder: Path,
    seed: int,
    make: Callable[..., PADConfig] | None = None,
    **changes: Any,
) -> PADConfig:
    """The arguments of one training of the run.

    Args:
        run: the run.
        before: the student that the training begins with.
        folder: of the trainer.
        seed: of the training.
        make: of the settings' functions the one that makes them; by default that of the run's own.
        changes: arguments that differ from the run's settings.
    """
    # The run pushes its student itself, once that is chosen and evaluated.
    make = make or run.settings.pad_config
    args = make(folder, seed, push_to_hub=False, **changes)
    if args.ddp_find_unused_parameters is None:  # a search in every step, and a warning if in vain
        args.ddp_find_unused_parameters = may_leave_weights_unused(before.config)
    return args


def may_leave_weights_unused(config: Any) -> bool:
    """Whether a text may leave weights without a gradient: those of experts, images or sound."""
    names = [name for name in vars(config) if not name.startswith("_")]
    return any(part in name for name in names for part in ("expert", "vision", "audio"))


def _card_note(run: RunContext, round: int) -> str:
    count = run.config.responses_per_prompt
    responses = responses_in_words(run, round, "the student of the round before")
    return (
        f"This is round {round} of a run; its responses, up to {count} a prompt, are {responses}."
    )


class StepsOnBar(TrainerCallback):
    """Moves a bar on by each optimizer step and each part of one, with the latest metrics."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self._parts = bar, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.work.total = state.max_steps
        self.bar.move_to(state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._parts += 1
        self.bar.move_to(state.global_step + self._parts / args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._parts = 0
        self.bar.move_to(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        known = logs or {}
        found = [f"{label} {known[name]:.3g}" for name, label in SHOWN.items() if name in known]
        if found:
            self.bar.note(", ".join(found))


class MetricsLines(TrainerCallback):
    """Writes each log of the trainer as a line of metrics.jsonl."""

    def __init__(self, run: RunContext, round: int, phase: str) -> None:
        self.run, self.round, self.phase = run, round, phase

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and state.is_world_process_zero:
            values = {name: value for name, value in logs.items() if name != "total_flos"}
            self.run.metrics.add(self.round, state.global_step, self.phase, values)


def train_round(run: RunContext, round: int) -> None:
    """Train the student of ``round`` from that of the round before, on the scored responses."""
    folder, before = run.folder.round(round), run.student(round - 1)
    seed = round_seed(run.config.seed, round, TRAIN.name)
    args = training_args(run, before, folder / "trainer", seed, **run.chosen)
    _train_on_scores(run, round, TRAIN.name, args, run.folder.student(round))


def train_compared(run: RunContext, name: str) -> None:
    """Train a method that is compared with the run's own, on the same scores and for its steps.

    Args:
        run: of one round, which is trained.
        name: of the method.
    """
    folder = folder_of(run.folder.root, name)
    seed = round_seed(run.config.seed, 1, TRAIN.name)  # the prompts come in the same order
    steps = int(read_json(run.folder.student(1) / STATE)["global_step"])
    make = partial(run.settings.method_config, name)
    args = training_args(run, run.student(0), folder / "trainer", seed, make, max_steps=steps)
    _train_on_scores(run, 1, phase_of(name), args, folder / "student")


def _train_on_scores(
    run: RunContext, round: int, phase: str, args: PADConfig, target: Path
) -> None:
    """Train the student of the round before on the scores of a round."""
    scores, before = run.folder.round(round) / "scores", run.student(round - 1)
    keep = partial(keep_scored_rows, run=run, scores=scores, args=args)
    # A damaged shard is found before weights are read.
    with common_rows(run, "train", keep) as rows:
        trainer = PADTrainer(
            model=loaded(run, before, bar_title(run, round, phase), args.seed),
            args=args,
            train_dataset=with_anchor(run, rows, args),
            processing_class=before.tokenizer,
        )
        if phase == TRAIN.name and args.chooses_teacher_beta and run.ranks.is_main:
            run.folder.choose("teacher_beta", trainer.args.teacher_beta)
        tokens = live_tokens(trainer.train_dataset)
        fit(trainer, run, before, round, phase, target, tokens)
