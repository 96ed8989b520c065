"""Gradients under DDP: one set of them, in the buckets that DDP averages."""

# No `from __future__ import annotations`: DDP compares the annotations of a hook with the types.

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor
from torch.distributed import GradBucket, all_reduce
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer


class OneSetOfGradients(Trainer):
    """Trainer, whose gradients under DDP take the memory of one set, and have the same bits.

    By default DDP copies gradients to its buckets, a second set of them. Here they are views of
    the buckets, also those of micro-batches that are not averaged yet.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        given = getattr(self.accelerator, "ddp_handler", None)
        if given is not None:
            kept = {**vars(given), "gradient_as_bucket_view": True}
            self.accelerator.ddp_handler = BucketedGradients(**kept)


class BucketedGradients(DistributedDataParallelKwargs):
    """The arguments of DDP; accelerate calls the method once it has made DDP of them."""

    def register_comm_hook(self, model: DistributedDataParallel) -> None:
        """Add micro-batches up in the buckets, where every weight has a gradient in each of them.

        Where DDP looks for unused weights, it has to know what all micro-batches used, and adds
        up outside of its buckets.
        """
        own_hook = self.comm_hook != DDPCommunicationHookType.NO
        if own_hook or self.find_unused_parameters or self.static_graph:
            super().register_comm_hook(model)
        else:
            _Averaging(model)


class _Averaging:
    """Averages the gradients of a DDP model, except inside its ``no_sync``."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.due, self.ranks, self.group = True, model.process_group.size(), model.process_group
        # DDP's own would let autograd make new gradients beside the buckets.
        model.no_sync = self._waiting  # type: ignore[method-assign]
        model.register_comm_hook(self, _Averaging._averaged)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        before, self.due = self.due, False
        try:
            yield
        finally:
            self.due = before

    def _averaged(self, bucket: GradBucket) -> Future[Tensor]:
        """The mean of a bucket over the ranks if it is due, by DDP's own arithmetic."""
        sums = bucket.buffer()
        if not self.due:
            done: Future[Tensor] = torch.futures.Future()
            done.set_result(sums)
            return done
        work: Any = all_reduce(sums.mul_(1 / self.ranks), group=self.group, async_op=True)
        return work.get_future().then(lambda found: found.value()[0])
