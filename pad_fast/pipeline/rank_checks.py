"""What has to hold between the ranks of a run before they begin."""

from __future__ import annotations

import platform
import time

from pad_fast.environment import decisive, variables, versions
from pad_fast.pipeline.run import RunContext

PATIENCE = 30.0  # seconds until what one machine wrote is seen by another


def check_ranks(run: RunContext) -> None:
    """Raise ValueError on every rank unless all have the same settings, versions and variables."""
    if run.ranks.alone:
        return
    run.ranks.check_equal("settings", run.settings.resolved(run.training))
    run.ranks.check_equal("environment", decisive(versions(), variables()))


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
