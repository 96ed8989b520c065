"""What a run in one process says about the GPUs that it leaves idle."""

from __future__ import annotations

import os

from pad_fast.device import count_gpus
from pad_fast.launch.process import COMMAND, world_size
from pad_fast.pipeline.config import RunConfig
from pad_fast.terminal import say


def tell_of_idle_gpus(config: RunConfig) -> None:
    """Say that a run uses the first of several visible GPUs, unless a launcher started it.

    Servers that the run starts see all of them.
    """
    count = count_gpus()
    if count <= 1 or world_size() > 1 or COMMAND in os.environ:
        return
    idle = f"the other {count - 1} are idle" if count > 2 else "the other one is idle"
    if config.student_serve or config.teacher_serve:
        idle = "the servers that it starts see all of them"
    say(
        f"this process uses the first of {count} visible GPUs, and {idle}; "
        f"--num_processes {count} uses them all"
    )
