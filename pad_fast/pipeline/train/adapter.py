"""Training by a low-rank adapter: made with PEFT, kept, and merged into the student.

The adapter is saved by the trainer, which gathers it from all ranks. The student is then made from
the weights before the round and that adapter, both in the data type of training. The same way
serves for whole weights, for weights in 4 bits and for weights that are split over ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, set_seed

from pad_fast.environment import install_extra
from pad_fast.models.auto import build_model
from pad_fast.models.output_head import read_head
from pad_fast.models.whole import whole_models
from pad_fast.pipeline.checkpoint import NO_CODE, Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.settings import RATE, Settings
from pad_fast.terminal import say
from pad_fast.training.adapter_rate import ADAPTER_RATE


def check_adapter(config: RunConfig, student: Checkpoint, *, quantizer: bool = True) -> None:
    """Raise ValueError if the adapter cannot be made or trained; reads no weights.

    Args:
        config: the run's settings.
        student: that gets the adapter.
        quantizer: whether what puts weights in 4 bits has to be installed.
    """
    if not config.use_peft:
        return
    if find_spec("peft") is None:
        raise ValueError(f"use_peft: needs PEFT, which is not installed: {install_extra('peft')}")
    if quantizer and config.load_in_4bit and find_spec("bitsandbytes") is None:
        raise ValueError(
            "load_in_4bit: needs bitsandbytes, which is not installed: pip install bitsandbytes"
        )
    with torch.device("meta"):
        model = build_model(student.config)
    try:
        read_head(with_adapter(model, config, low_cpu_mem_usage=True))
    except ValueError as error:
        raise ValueError(f"lora_target_modules: {error}") from None


def tell_of_rate(settings: Settings) -> None:
    """Say which learning rate an adapter gets that is given none."""
    if settings.run.use_peft and settings.training.get(RATE) is None:
        say(
            f"{RATE}: {ADAPTER_RATE:g}, ten times that of full training, since an adapter is "
            "trained and no rate is given"
        )


def with_adapter(model: Any, config: RunConfig, **options: Any) -> Any:
    """The model with a new adapter, the only part of it that is trained."""
    from peft import LoraConfig, get_peft_model

    targets: Any = config.lora_target_modules
    if targets is not None and len(targets) == 1 and not _is_name(targets[0]):
        targets = targets[0]  # PEFT takes a pattern, or all-linear, by itself
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )
    with _without_deprecations():
        return get_peft_model(model, lora, **options)


def _is_name(target: str) -> bool:
    """Whether a target is a module's name, such as q_proj or self_attn.q_proj."""
    return all(part.isidentifier() for part in target.split("."))


def trainable(config: RunConfig, student: Checkpoint, seed: int) -> Any:
    """The student's model as it is trained: in the data type of training, with an adapter if set.

    Args:
        config: the run's settings.
        student: where the training begins.
        seed: of the adapter's first weights.
    """
    if config.use_peft:
        set_seed(seed)
    if not config.load_in_4bit:
        model = dataclasses.replace(student, dtype=config.train_dtype).model
        return with_adapter(model, config) if config.use_peft else model
    computed = torch.bfloat16 if config.train_dtype == "bfloat16" else torch.float32
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed
    )
    student.compare(weights=True)
    model = student.model_class.from_pretrained(
        student.path,
        revision=student.revision,
        dtype=config.train_dtype,
        quantization_config=quantized,
        **student.attention_argument,
        **NO_CODE,
    )
    return with_adapter(model, config)


def merged(config: RunConfig, student: Checkpoint, adapter: Path) -> Any:
    """The student's model in the data type of training, with a saved adapter merged into it.

    That is done on the CPU: the weights in float32 need not fit beside what a GPU still holds.
    """
    from peft import PeftModel

    model = dataclasses.replace(student, dtype=config.train_dtype).load("cpu")
    with whole_models(), _without_deprecations():
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hides that PEFT asks transformers by a name that will go, of which a user can do nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
