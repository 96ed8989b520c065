"""The phases of a run, and which setting enters which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from pad_fast.pipeline.config import RunConfig

# Settings that may always change between two calls on one run folder: they change no result, but for rounding.
FREE = frozenset({
    "output_dir", "logging_steps", "report_to", "disable_tqdm", "log_level", "save_steps", "save_strategy", "save_total_limit",
    "score_batch_tokens", "max_tokens_per_step", "memory_budget", "share_prefix", "torch_empty_cache_steps", "dataset_num_proc",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
})  # fmt: skip
# And those that may change until the phase begins whose results they enter first; all others of a run enter its prompts, and
# all others of PADConfig its training.
ENTERS = {
    "sample": frozenset({
        "sample_batch_tokens", "temperature", "top_p", "top_k", "num_generations", "heldout_num_generations",
        "reward_temperature", "normalize", "dtype", "attn_implementation",
    }),
    "score": frozenset({
        "mcq_preset", "mcq_style", "mcq_opponents", "mcq_weight", "mcq_floor", "mcq_both_orders", "mcq_renormalize", "mcq_template",
    }),
    "train": frozenset({"train_dtype"}),
}  # fmt: skip


def first_phase(name: str) -> str | None:
    """The first phase whose results a setting enters: "prepare", "sample", "score" or "train"; None for one that enters none."""
    if name in FREE:
        return None
    other = "prepare" if name in RunConfig.__dataclass_fields__ else "train"
    return next((phase for phase, names in ENTERS.items() if name in names), other)


def differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str | None]:
    """The settings that differ, with the first phase that each enters; raising `rounds` only adds to a run."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    adds = before["baseline"] == "none" and now["rounds"] >= before["rounds"]
    return {name: None if name == "rounds" and adds else first_phase(name) for name in names}
