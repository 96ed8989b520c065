"""Where the trainings of a process begin, which the files of a finished run do not tell.

A training that starts over ends as one that goes on from its checkpoint, to the last bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pad_fast.pipeline.train.checkpoints import step_folders
from pad_fast.training.resumed_log import ResumableLog

STARTED_OVER = 70  # the exit code of a process that left a checkpoint alone


def told(tell: Callable[[str, int], object]) -> None:
    """Have each training of this process that takes a step tell where it begins.

    A training that does not begin at its newest checkpoint ends the process.

    Args:
        tell: called with the name of the training's folder and the steps that were done before.
    """
    train, count = ResumableLog.train, ResumableLog._count_loss

    def watched_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        folders = step_folders(Path(self.args.output_dir))
        self.newest = int(folders[-1].name.rpartition("-")[2]) if folders else 0
        self.begins = True
        return train(self, *args, **kwargs)

    def watched_count(self: Any, loss: Any) -> Any:
        if self.begins:
            self.begins, name = False, Path(self.args.output_dir).parent.name
            tell(name, self.state.global_step)
            if self.state.global_step != self.newest:
                begun = f"{name} begins after step {self.state.global_step}, not {self.newest}"
                print(begun, file=sys.stderr, flush=True)
                os._exit(STARTED_OVER)
        return count(self, loss)

    ResumableLog.train, ResumableLog._count_loss = watched_train, watched_count
