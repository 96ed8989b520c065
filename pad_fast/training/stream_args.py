"""The arguments of a training whose rows come from a stream."""

from __future__ import annotations

import copy
from typing import Any

from pad_fast.training.config import PADConfig, changed


def for_stream(args: PADConfig) -> PADConfig:
    """The arguments for rows without a length.

    accelerate would cut the packed rows of a batch as if each were a prompt. In place of that each
    rank reads the whole stream and takes its part; a last batch that is not full is left out there.

    Raises:
        ValueError: nothing says where the training ends.
    """
    if args.max_steps <= 0:
        raise ValueError(
            "max_steps must be given for a train_dataset without a length, since the training "
            f"ends by it; got {args.max_steps}"
        )
    loader: Any = copy.copy(args.accelerator_config)
    loader.dispatch_batches = False
    drop_last = args.dataloader_drop_last or args.world_size > 1
    return changed(args, accelerator_config=loader, dataloader_drop_last=drop_last)
