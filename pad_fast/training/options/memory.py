"""How much memory a step takes, and which implementation computes it."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.training.options.argument import argument


@dataclass
class MemoryArguments:
    """How much memory a step takes, and which implementation computes it."""

    impl: str = argument("auto", "Implementation of rewards and loss: auto, torch or triton.")
    share_prefix: str = argument(
        "auto",
        "Read a prompt once for all of its responses: true, false, or auto (if a trial gives the "
        "same gradients).",
    )
    max_tokens_per_step: int | None = argument(
        None,
        "Most tokens of one forward and backward. A batch with more is read in slices, which costs "
        "one more forward and gives the same gradient. None: an estimate for the GPU; no limit on "
        "a CPU.",
    )
    memory_budget: str = argument(
        "auto",
        "Bytes in which the output head may keep logits for the backward, which saves one of its "
        "four matrix products: a number, or auto (a 16th of a GPU's memory, 512 MiB on a CPU). 0 "
        "takes the least memory.",
    )
