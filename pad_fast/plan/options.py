"""The flags of ``pad-fast plan``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pad_fast.launch.launcher import config_path
from pad_fast.pipeline.option import option
from pad_fast.plan.machine import parse_bytes


@dataclass
class PlanOptions:
    """The command's flags, in addition to those of the run.

    Raises:
        ValueError: a flag that is no size or no count.
    """

    num_prompts: int = option(
        2000, "Training prompts whose lengths are measured, drawn by the seed."
    )
    response_length: int | None = option(
        None,
        "Tokens of a typical response, for the times of what reads responses; sampling goes on "
        "until the longest of a batch ends. Default: max_new_tokens.",
    )
    num_processes: int = option(
        1, "Processes that share the run, each on a device of its own, as `pad-fast run` has them."
    )
    accelerate_config: str | None = option(
        None, "How they share the training, as `pad-fast run` has it: fsdp2 splits the weights."
    )
    device_memory: str | None = option(
        None,
        "Memory of the GPU to plan for, such as 80GiB; training is then assumed to be in bf16. "
        "Default: this machine's.",
    )
    device_tflops: float | None = option(
        None,
        "TFLOP/s of its matrix products in the data type of training; default: measured here.",
    )
    device_bandwidth: float | None = option(None, "GB/s of its memory; default: measured here.")
    trials: bool = option(
        True,
        "Try each kind of work on a few layers of random weights, where this machine is planned "
        "for. false: times by the rates of products and copies alone, which are a floor.",
    )
    keep: bool = option(
        False, "Keep the plan in the run folder, where the report shows it beside what was taken."
    )
    json: bool = option(False, "Print the plan as JSON instead of tables.")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "response_length", "num_processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be 1 or more, got {value}")
        for name in ("device_tflops", "device_bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: must be above 0, got {value}")
        given = self.device_memory
        self.memory = None if given is None else parse_bytes("device_memory", given)
        if self.accelerate_config is not None:
            config_path(self.accelerate_config)

    @property
    def splits(self) -> bool:
        """Whether the processes split the weights of the student that is trained."""
        name = str(self.accelerate_config)
        return "fsdp" in name or "zero3" in name

    @property
    def averages(self) -> bool:
        """Whether each process holds all gradients, which DDP averages."""
        return not self.splits and "zero" not in str(self.accelerate_config)

    @property
    def here(self) -> bool:
        """Whether this machine is planned for, on which work can be tried."""
        given = (self.memory, self.device_tflops, self.device_bandwidth)
        return self.trials and given == (None, None, None)
