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
# Among them is `impl`: before the training it changes nothing but rounding.
TRAIN = Phase(
    "train",
    "train the student on the scored responses",
    frozenset(
        {
            # The run's own.
            "compare",
            "train_dtype",
            "prompts_per_step",
            "use_peft",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "load_in_4bit",
            # The loss and its rows.
            "loss",
            "preset",
            "beta",
            "teacher_beta",
            "divergence",
            "method",
            "num_samples",
            "gamma",
            "pairs",
            "group_size",
            "group_reduction",
            "anchor",
            "preference_weight",
            "likelihood_weight",
            "likelihood_on",
            "likelihood_beta",
            "repeats",
            "train_on",
            "max_length",
            "max_completion_length",
            "mask_truncated_completions",
            "disable_dropout",
            # The optimizer and its steps.
            "learning_rate",
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_steps",
            "num_train_epochs",
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "auto_find_batch_size",
            "optim",
            "optim_args",
            "optim_target_modules",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            # Precision, and what computes.
            "bf16",
            "fp16",
            "tf32",
            "impl",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "use_liger_kernel",
            "liger_kernel_config",
            "use_cpu",
            "full_determinism",
            # How it is split over processes, on which the form of checkpoints depends.
            "fsdp",
            "fsdp_config",
            "deepspeed",
            "accelerator_config",
            "parallelism_config",
            "ddp_broadcast_buffers",
            # Which rows come when.
            "data_seed",
            "train_sampling_strategy",
            "dataloader_drop_last",
            "dataloader_in_order",
            # What a resume restores, and what a logged loss counts.
            "restore_callback_states_from_checkpoint",
            "logging_nan_inf_filter",
            # Evaluation within a training, which a run does not do; a wrong one stops it.
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "bf16_full_eval",
            "fp16_full_eval",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
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
        # The folder, the environment, the student that the run names.
        "output_dir",
        "accept_environment",
        "load_best_round",
        # What is pushed, once all is done.
        "push_to_hub",
        "hub_model_id",
        "hub_revision",
        "hub_private_repo",
        "hub_token",
        "hub_strategy",
        "hub_always_push",
        "hub_dataset_id",
        "hub_dtype",
        # Servers.
        "student_server",
        "teacher_server",
        "student_serve",
        "teacher_serve",
        "server_concurrency",
        "server_timeout",
        "server_patience",
        "serve_timeout",
        # What is shown, logged and tracked.
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "skip_memory_metrics",
        "debug",
        # When checkpoints are kept: a resume is exact from any.
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "enable_jit_checkpoint",
        # Memory and speed.
        "score_cache",
        "sample_batch_tokens",
        "score_batch_tokens",
        "max_tokens_per_step",
        "memory_budget",
        "share_prefix",
        "torch_empty_cache_steps",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        # How rows are read.
        "dataset_num_proc",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "remove_unused_columns",
        # How processes talk.
        "ddp_backend",
        "ddp_timeout",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
    }
)


def first_phase(setting: str) -> str | None:
    """The name of the first phase whose results depend on a setting; None if no result does."""
    if setting in FREE:
        return None
    found = (phase.name for phase in (PREPARE, *PHASES) if setting in phase.settings)
    # Another release of transformers may have arguments that no phase names.
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
