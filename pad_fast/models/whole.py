"""Models that every process holds whole, whatever a launcher splits for the training."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

from transformers.integrations import deepspeed

# What accelerate sets for fsdp_cpu_ram_efficient_loading, by which transformers leaves out what the
# first process of a machine is going to send to the others.
FIRST_LOADS = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """Within it transformers loads and builds models as if this process were alone.

    TrainingArguments tell transformers of ZeRO-3 for as long as they live, whatever
    ``zero3_init_flag`` says: each model would be split over all processes, which would have to
    build it at the same time. FSDP has a similar setting. Sampling and scoring need whole models,
    and each process has one when its own work asks for it.
    """
    known = deepspeed._hf_deepspeed_config_weak_ref
    config = None if known is None else known()
    first_loads = os.environ.pop(FIRST_LOADS, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
        if first_loads is not None:
            os.environ[FIRST_LOADS] = first_loads


def check_values(model: Any, what: str) -> None:
    """Raise ValueError if a tensor of a loaded model has no values.

    Args:
        model: the model.
        what: its role and its path, for the message.
    """
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{what}: {name} was loaded without values, as for a model that other processes "
                "send; set fsdp_cpu_ram_efficient_loading: false in the configuration of accelerate"
            )
