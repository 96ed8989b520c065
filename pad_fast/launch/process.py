"""One of the processes that a launcher has started: its number, and what it says when it ends."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from typing import Any

from pad_fast.files.system_errors import first_line
from pad_fast.terminal import command_line

# The line that a user gave, in the environment of the processes that were started for it.
COMMAND = "PAD_FAST_COMMAND"
# What every launcher sets, beside the number of processes.
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# torchrun keeps one store over all restarts unless this is set: processes that are started again
# would read the addresses and counters of those that died.
NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
# What launchers set for the processes that they start: names, or what some names begin with if it
# ends in "_". A server would take them for its own: vLLM's processes wait at the launcher's store.
OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_",
    "ROLE_",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_",
    NEW_STORE,
    "ACCELERATE_",
    "FSDP_",
    "PARALLELISM_CONFIG_",
)
ON_CPU = "ACCELERATE_USE_CPU"
THREADS = "OMP_NUM_THREADS"  # which launchers set to 1, where a user has not set it
# What gloo, NCCL and the store say where the other end of a connection is gone.
GONE = re.compile(
    r"closed by peer|reset by peer|remote process exited|Broken pipe|Connection refused"
    r"|Connection was likely closed",
    re.I,
)


def rank() -> int:
    """The number of this process, 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that a launcher has started, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_on_cpu() -> bool:
    """Whether accelerate leaves the GPUs alone, as its own configuration may say."""
    return os.environ.get(ON_CPU, "").lower() in ("1", "y", "yes", "t", "true", "on")


def environment_of_others() -> dict[str, str]:
    """The environment for a program that is none of the launcher's processes, such as a server."""
    kept = {name: value for name, value in os.environ.items() if not _of_launcher(name)}
    if "RANK" in os.environ and kept.get(THREADS) == "1":
        del kept[THREADS]
    return kept


def _of_launcher(name: str) -> bool:
    return any(
        name.startswith(known) if known.endswith("_") else name == known for known in OF_LAUNCHERS
    )


def check_launched(command: str, many: bool) -> None:
    """Raise ValueError where a launcher's variables are missing, or a command takes one process.

    Args:
        command: its name.
        many: whether many processes can work on it together.
    """
    if world_size() == 1:
        return
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE: is {world_size()}, and {', '.join(missing)} are not set, by which the "
            "processes find one another; start them with --num_processes, torchrun or accelerate "
            "launch, or unset WORLD_SIZE"
        )
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if again and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            f"{NEW_STORE}: set it to 1 for torchrun's restarts, which otherwise keep what the "
            "processes that died have written into its store; the same command then goes on"
        )
    if not many:
        raise ValueError(
            f"{command}: takes one process, and a launcher has started {world_size()}; give it "
            "without the launcher"
        )


def given_command(words: Sequence[str]) -> str:
    """The line that a user gave: that of the launch, or ``pad-fast`` with ``words``."""
    return os.environ.get(COMMAND) or command_line(["pad-fast", *words])


def named(message: str) -> str:
    """A message with the number and the machine of the process that it comes from, if several."""
    if world_size() == 1 or "RANK" not in os.environ:
        return message
    return f"rank {rank()} of {world_size()} ({platform.node()}): {message}"


def speaks(message: str) -> bool:
    """Whether this process says a message, which other processes may have too.

    The first that has it does. Where they have not met yet, one on each machine does.
    """
    store = common_store()
    if world_size() == 1:
        return True
    if store is None:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    digest = hashlib.sha256(message.encode()).hexdigest()
    try:
        return int(store.add(f"pad_fast/said/{digest}", 1)) == 1
    except Exception:  # the process that held the store is gone
        return True


def is_left_alone(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    return world_size() > 1 and isinstance(error, RuntimeError) and bool(GONE.search(str(error)))


def cannot_meet(error: BaseException) -> str | None:
    """What hinders the processes from meeting, if an error says that they cannot; else None."""
    import torch.distributed

    if world_size() == 1 or not isinstance(error, torch.distributed.DistError):
        return None
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    return (
        f"MASTER_ADDR, MASTER_PORT: the {world_size()} processes cannot meet at {place}, where "
        "rank 0 should listen: another program has the port, or the machine is not reached; give "
        f"all of them another MASTER_PORT ({first_line(error)})"
    )


def common_store() -> Any:
    """The store of torch.distributed, or None where the processes have not met."""
    if "torch.distributed" not in sys.modules:
        return None
    import torch.distributed
    from torch.distributed.distributed_c10d import _get_default_store

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return _get_default_store()
