"""How the prompts of an optimizer step are divided over processes and micro-batches."""

from __future__ import annotations

from typing import Any

from pad_fast.launch.process import world_size

BATCH, ACCUMULATION, PRODUCT = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "prompts_per_step",
)


def divided(prompts: int, training: dict[str, Any], usual_batch: int) -> dict[str, int]:
    """The batch of a process and the batches that it accumulates, for the present processes.

    The batch is the one that is set, or all prompts of a process where these are fewer.

    Args:
        prompts: of one optimizer step, over all processes.
        training: the settings of the training that were given.
        usual_batch: a process's batch where none is given.

    Raises:
        ValueError: the prompts cannot be divided; the message names the setting.
    """
    world = world_size()
    if prompts % world:
        raise ValueError(
            f"{PRODUCT}: must be a multiple of the number of processes, {world}, so that each "
            f"takes as many prompts, got {prompts}"
        )
    share = prompts // world
    batch = min(training.get(BATCH, usual_batch), share)
    if BATCH not in training:  # nobody asked for it: the largest that fits
        batch = next(size for size in range(batch, 0, -1) if share % size == 0)
    if batch < 1 or share % batch:
        raise ValueError(
            f"{BATCH}: must divide the {share} prompts that each of {world} processes takes of the "
            f"{prompts} of {PRODUCT}, got {batch}"
        )
    if training.get(ACCUMULATION, share // batch) != share // batch:
        raise ValueError(
            f"{ACCUMULATION}: follows from {PRODUCT} = {prompts}, {world} processes and "
            f"{BATCH} = {batch}, which make it {share // batch}; leave it out, got "
            f"{training[ACCUMULATION]}"
        )
    return {BATCH: batch, ACCUMULATION: share // batch}


def with_product(values: dict[str, Any], given: int | None) -> dict[str, Any]:
    """Resolved settings with the prompts of a step in them.

    Where they were given, the parts are left out, which then change with the processes.

    Args:
        values: every setting, by its name.
        given: the setting, None if it is open.
    """
    if given is not None:
        return {name: value for name, value in values.items() if name not in (BATCH, ACCUMULATION)}
    return {**values, PRODUCT: values[BATCH] * values[ACCUMULATION] * world_size()}
