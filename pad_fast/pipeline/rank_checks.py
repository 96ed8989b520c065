"""What has to hold between the ranks of a run before they begin."""

from __future__ import annotations

import platform
import time

from pad_fast.device import gpu_identity, visible_gpus
from pad_fast.environment import decisive, variables, versions
from pad_fast.pipeline.run import RunContext

PATIENCE = 30.0  # seconds until what one machine wrote is seen by another


def check_ranks(run: RunContext) -> None:
    """Raise ValueError on every rank unless all can work together.

    They need the same settings, versions and variables, and each a GPU of its own.
    """
    if run.ranks.alone:
        return
    run.ranks.check_equal("settings", run.settings.resolved(run.training))
    run.ranks.check_equal("environment", decisive(versions(), variables()))
    _check_gpus(run)


def _check_gpus(run: RunContext) -> None:
    """Raise ValueError on every rank if two use the same GPU.

    accelerate gives GPU 0 to the process after the last GPU's, and NCCL would refuse that when the
    training begins, hours later.
    """
    own = {"gpu": gpu_identity(run.training.device), "host": platform.node(), "of": visible_gpus()}
    first: dict[str, int] = {}
    for rank, found in enumerate(run.ranks.gather(own)):
        before = first.setdefault(found["gpu"] or f"rank {rank} has none", rank)
        if before != rank:
            raise ValueError(
                f"num_processes: rank {before} and rank {rank} on {found['host']} have the same "
                f"GPU, and each process needs one of its own; the machine shows {found['of']}. "
                "Start as many processes on each machine (--num_processes, torchrun's "
                "--nproc_per_node), or let the processes see other GPUs"
            )


def check_shared_folder(run: RunContext, patience: float = PATIENCE) -> None:
    """Wait for rank 0's manifest, and raise ValueError on a rank that does not see it.

    Args:
        run: the run.
        patience: seconds until a missing manifest is an error, as shared folders may be slow.
    """
    if run.ranks.alone:
        return
    folder, main = run.folder, run.ranks.is_main
    wanted, host = run.ranks.agree(
        [folder.manifest()["created"], platform.node()] if main else None
    )
    deadline = time.monotonic() + patience
    while not folder.manifest_path.exists() or folder.manifest()["created"] != wanted:
        if time.monotonic() > deadline:
            raise ValueError(
                f"output_dir: rank {run.ranks.rank} on {platform.node()} does not see "
                f"{folder.manifest_path}, which rank 0 on {host} has written; give a folder that "
                "all machines share"
            )
        time.sleep(0.5)
    run.ranks.wait()
