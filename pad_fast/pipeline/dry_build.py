"""What the training will need, built before anything is sampled: a dry run on a few weights."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from pad_fast.device import default_device
from pad_fast.device_errors import name_the_device
from pad_fast.dispatch import check_launches
from pad_fast.environment import shown, variables
from pad_fast.files.system_errors import first_line
from pad_fast.models.auto import build_model
from pad_fast.pipeline import hub
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train.adapter import check_adapter
from pad_fast.training.config import PADConfig

logger = logging.getLogger("pad_fast")

STEPS = 10  # in the learning rate's schedule
# What makes get_optimizer_cls_and_kwargs build for the model that it was given.
BUILT_FOR_A_MODEL = ("params", "model", "optimizer_dict")


def check_training(run: RunContext) -> None:
    """Build optimizer, schedule, trackers and Trainer as the training will, and throw them away.

    Raises:
        ValueError: one of them cannot be built, or the implementation cannot run here. The message
            names the setting.
    """
    check_launches(run.training.impl, default_device())
    check_adapter(run.config, run.student(0))
    _check_trackers(run.training)
    _check_compilation(run.training)
    with tempfile.TemporaryDirectory() as folder:
        args = run.settings.pad_config(Path(folder), report_to="none", push_to_hub=False)
        set_there = shown(variables()) or "nothing that matters"
        with _naming(
            "the training's settings",
            f"Trainer cannot be built with them, where the environment sets {set_there}",
        ):
            trainer = Trainer(model=nn.Linear(2, 2), args=args)
        _check_saved_form(trainer)
        _tell_of_rounding(run, trainer)
        _check_optimizer(run, trainer)
        _check_recomputation(args)


@contextlib.contextmanager
def _naming(setting: str, problem: str) -> Iterator[None]:
    """Raise ValueError about ``setting`` for whatever a library raises inside.

    A failure of the device is a RuntimeError about the device.
    """
    try:
        yield
    except Exception as error:  # any kind, by any library that a setting chooses
        name_the_device(error)
        raise ValueError(f"{setting}: {problem}: {first_line(error)}") from error


def check_hub(args: PADConfig, dataset: str | None, dtype: str = "trained") -> None:
    """Check that what the run ends with can be pushed to the hub, where that is wanted.

    Args:
        args: of the training.
        dataset: the setting ``hub_dataset_id``.
        dtype: the setting ``hub_dtype``.

    Raises:
        ValueError: it cannot, or is described and not wanted. The message names the setting.
    """
    if not args.push_to_hub:
        if dtype != "trained":
            raise ValueError(
                f"hub_dtype: needs push_to_hub: true, got {dtype!r} and nothing is pushed"
            )
        if dataset is not None:
            raise ValueError(
                f"hub_dataset_id: needs push_to_hub: true, got {dataset!r} and nothing is pushed"
            )
        return
    if args.hub_model_id is None:
        raise ValueError(
            "hub_model_id: needed with push_to_hub, since the trainer's folder in every run has "
            "the same name"
        )
    for setting, name in (("hub_model_id", args.hub_model_id), ("hub_dataset_id", dataset)):
        if name is not None and not hub.may_be_name(name):
            raise ValueError(f"{setting}: must be a name such as me/model, got {name!r}")
    if dataset is not None and dataset == args.hub_model_id:
        raise ValueError(f"hub_dataset_id: must differ from hub_model_id, got {dataset!r} for both")
    if (problem := hub.push_problem(args.hub_token)) is not None:
        raise ValueError(
            f"push_to_hub: nothing can be pushed: {problem}; log in with `hf auth login` and a "
            "token that may write, or set push_to_hub to false"
        )


def _check_trackers(args: PADConfig) -> None:
    for name in args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to: must be none, all or some of {known}, got {name!r}")
        with _naming("report_to", f"the tracker {name} cannot be used"):
            INTEGRATION_TO_CALLBACK[name]()
            if name == "wandb" and os.environ.get("WANDB_MODE", "online") == "online":
                import_module("wandb").login()  # asks at a terminal, and raises without one


def _check_saved_form(trainer: Trainer) -> None:
    """Raise ValueError unless Trainer saves a student that is split over processes as one model."""
    state: Any = trainer.accelerator.state
    if fsdp := getattr(state, "fsdp_plugin", None):
        form = fsdp.state_dict_type.name
        if form != "FULL_STATE_DICT":
            raise ValueError(
                f"fsdp_state_dict_type: must be FULL_STATE_DICT, since the student is saved as one "
                f"model, got {form}; set it in the fsdp_config of accelerate's configuration "
                "(state_dict_type in Trainer's own fsdp_config), or take --accelerate_config fsdp2"
            )
    if deepspeed := getattr(state, "deepspeed_plugin", None):
        zero = deepspeed.deepspeed_config.get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ValueError(
                "zero3_save_16bit_model: must be true with ZeRO-3, since the student is saved as "
                "one model; set it in the deepspeed_config of accelerate's configuration "
                "(stage3_gather_16bit_weights_on_model_save in DeepSpeed's own file), or take "
                "--accelerate_config zero3"
            )


def _tell_of_rounding(run: RunContext, trainer: Trainer) -> None:
    """Warn that DeepSpeed begins with rounded weights, where the training should be in float32."""
    setting = next((name for name in ("bf16", "fp16") if getattr(run.training, name)), None)
    if trainer.is_deepspeed_enabled and setting and run.config.train_dtype == "float32":
        logger.warning(
            "DeepSpeed rounds the student's weights to 16 bits where a round begins with %s: true; "
            "from there its optimizer keeps float32, which is what is saved. "
            "--accelerate_config fsdp2 does not round them",
            setting,
        )


def _check_optimizer(run: RunContext, trainer: Trainer) -> None:
    """Build the optimizer and its schedule on a few weights, and take all steps."""
    args, few, optimizer = trainer.args, trainer.model, None
    assert few is not None
    name = getattr(args.optim, "value", args.optim)
    with _naming("optim", f"the optimizer {name} cannot be built"):
        names_of: Any = _student_without_weights(run) if args.optim_target_modules else few
        _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, names_of)
        if args.optim_target_modules is None and not kwargs.keys() & {*BUILT_FOR_A_MODEL}:
            optimizer = trainer.create_optimizer()
    # Another optimizer serves where the real one needs the student's weights.
    optimizer = optimizer or torch.optim.SGD(few.parameters(), lr=args.learning_rate)
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    given = args.lr_scheduler_kwargs or {}
    with _naming("lr_scheduler_type", f"{kind} with {given} cannot be built"):
        schedule: Any = trainer.create_scheduler(STEPS, optimizer)
        for _ in range(STEPS):
            optimizer.step()
            schedule.step()


def _student_without_weights(run: RunContext) -> Any:
    """The student's modules, in which an optimizer looks for its targets."""
    with torch.device("meta"):
        return build_model(run.student(0).config)


def _check_compilation(args: PADConfig) -> None:
    if args.torch_compile:
        with _naming("torch_compile_backend or torch_compile_mode", "cannot be used"):
            backend: Any = args.torch_compile_backend
            torch.compile(nn.Linear(2, 2), backend=backend, mode=args.torch_compile_mode)


def _check_recomputation(args: PADConfig) -> None:
    """Recompute one layer with the arguments that the student's layers will get."""
    names = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
    name = next((name for name in names if getattr(args, name, None)), None)
    if name is None:
        return
    options: Any = getattr(args, name)
    with _naming(name, f"{options} cannot be used"):
        row = torch.zeros(1, 2, requires_grad=True)
        checkpoint(nn.Linear(2, 2), row, **{"use_reentrant": False, **options}).sum().backward()
