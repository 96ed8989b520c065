"""The phases of a run: their order, the settings they depend on, and the files they leave.

The functions that do them are the ``PHASE_FUNCTIONS`` of :mod:`pad_fast.pipeline.rounds`. This
module is imported for ``pad-fast --help`` and imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Args:
        name: the command that runs the phase alone, and the phase's name in metrics.jsonl.
        help: its line in ``pad-fast --help``.
        settings: the settings whose results this phase is the first to show. They may change
            between two calls on one run folder until the phase has kept something.
        kept: glob patterns, below the run folder, of the files that show that it kept something.
    """

    name: str
    help: str
    settings: frozenset[str]
    kept: tuple[str, ...]


PREPARE = Phase(
    "prepare",
    "check models and prompts and write the manifest; part of every command on a new run folder",
    frozenset(
        {
            "student",
            "student_revision",
            "teacher",
            "teacher_revision",
            "chat_template_kwargs",
            "reward_model",
            "reward_model_revision",
            "prompts",
            "responses",
            "responses_scores",
            "responses_split",
            "prompts_split",
            "prompts_subset",
            "heldout",
            "heldout_split",
            "heldout_size",
            "max_new_tokens",
            "max_prompt_length",
            "long_prompts",
            "rounds",
            "prompts_per_round",
            "shard_size",
            "seed",
            "baseline",
            "validation_size",
            "teacher_system_prompt",
        }
    ),
    ("run.json",),
)
SAMPLE = Phase(
    "sample",
    "sample responses to the prompts from the student",
    frozenset(
        {
            "num_generations",
            "heldout_num_generations",
            "temperature",
            "top_p",
            "top_k",
            "dtype",
            "attn_implementation",
            "reward_temperature",
            "normalize",
            "teacher_response",
        }
    ),
    (
        "round-*/samples/part-*.parquet",
        "round-*/answers/part-*.parquet",
        "heldout/samples/part-*.parquet",
    ),
)
SCORE = Phase(
    "score",
    "score the responses with the teacher, calibrated by multiple-choice questions",
    frozenset(
        {
            "mcq_preset",
            "mcq_style",
            "mcq_opponents",
            "mcq_formula",
            "mcq_weight",
            "mcq_floor",
            "mcq_every_place",
            "mcq_renormalize",
            "mcq_template",
        }
    ),
    ("round-*/scores/part-*.parquet", "heldout/groups/part-*.parquet"),
)
# Settings that no phase names are PADConfig's and change the training first. Among them is `impl`:
# before the training it changes nothing but rounding.
TRAIN = Phase(
    "train",
    "train the student on the scored responses",
    frozenset(
        {
            "compare",
            "train_dtype",
            "prompts_per_step",
            "use_peft",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "load_in_4bit",
        }
    ),
    ("*/student", "*/trainer/checkpoint-*/trainer_state.json"),  # in round-RR/ and in seqkd/
)
EVALUATE = Phase(
    "evaluate",
    "evaluate the student on the held-out prompts",
    frozenset({"answer_rule", "patience"}),
    ("evaluation/*.json", "validation/*.json"),
)

# The phases of a round, in their order. A new run is prepared before the first of them.
PHASES = (SAMPLE, SCORE, TRAIN, EVALUATE)

# Settings of benchmarks, which come after all phases. Each benchmark's own folder keeps what its
# answers were made with, and refuses another.
OF_BENCHMARKS = frozenset(
    {
        "benchmarks",
        "benchmark_questions",
        "benchmark_judge",
        "benchmark_limit",
        "benchmark_max_new_tokens",
        "benchmark_temperature",
        "benchmark_shots",
        "benchmark_shots_file",
        "benchmark_suffix",
        "benchmark_system_prompt",
        "benchmark_strip_thinking",
        "benchmark_harness",
        "benchmark_form",
    }
)

# These settings may always change between two calls on one run folder: except for rounding they
# change no result. Servers sample other responses than this process, from the same distribution;
# every row names the engine that it comes from. Another `sample_batch_tokens` draws other responses
# too, from the same distribution, for what is not sampled yet.
FREE = OF_BENCHMARKS | frozenset(
    {
        "output_dir",
        "hub_dataset_id",
        "hub_dtype",
        "accept_environment",
        "load_best_round",
        "student_server",
        "teacher_server",
        "student_serve",
        "teacher_serve",
        "server_concurrency",
        "server_timeout",
        "server_patience",
        "serve_timeout",
        "logging_steps",
        "report_to",
        "disable_tqdm",
        "log_level",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "score_cache",
        "sample_batch_tokens",
        "score_batch_tokens",
        "max_tokens_per_step",
        "memory_budget",
        "share_prefix",
        "torch_empty_cache_steps",
        "dataset_num_proc",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    }
)


def first_phase(setting: str) -> str | None:
    """The name of the first phase whose results depend on a setting; None if no result does."""
    if setting in FREE:
        return None
    found = (phase.name for phase in (PREPARE, *PHASES) if setting in phase.settings)
    return next(found, TRAIN.name)


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str | None]:
    """The settings that differ between two configurations of a run, each with its first phase.

    Raising ``rounds`` only adds to a run, and so does another ``patience``: the phase is then None.
    With a baseline it is not, since its number of steps depends on the number of rounds.
    """
    # What only one of them has is of another version, which is noticed by itself. In their own
    # order: a setting stands before those whose default it is.
    names = [name for name in now if name in before and before[name] != now[name]]
    free = {"patience"} if before["baseline"] == "none" else set()
    free |= {"rounds"} if free and now["rounds"] >= before["rounds"] else set()
    return {name: None if name in free else first_phase(name) for name in names}
