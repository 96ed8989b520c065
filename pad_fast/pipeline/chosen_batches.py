"""A run's batches: those of its settings, or those that fit the device where they are left open."""

from __future__ import annotations

import copy

from pad_fast.device import all_memory, default_device, is_gpu
from pad_fast.files.own_files import write_json
from pad_fast.pipeline.batch_sizes import (
    SAMPLED,
    SCORED,
    BatchTokens,
    tokens_that_fit,
    with_fitting_scores,
)
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.server_settings import is_served

KEPT = "batches"  # a part of the manifest


def choose_batches(run: RunContext) -> None:
    """Set the run's batches, on all ranks alike.

    Which prompts are sampled together decides what is sampled. That number is therefore kept in the
    manifest, and a run that goes on elsewhere keeps it.
    """
    config = run.config
    known = run.folder.manifest().get(KEPT, {}) if run.ranks.is_main else {}
    kept = run.ranks.agree(known.get(SAMPLED))
    sample = config.sample_batch_tokens or kept or min(run.ranks.gather(_fitting(run, SAMPLED)))
    score = config.score_batch_tokens or min(run.ranks.gather(_fitting(run, SCORED)))
    run.scores.limits = BatchTokens(sample, score)
    if run.ranks.is_main and config.sample_batch_tokens is None and kept is None:
        manifest = {**run.folder.manifest(), KEPT: {SAMPLED: sample}}
        write_json(run.folder.manifest_path, manifest)


def models_of(run: RunContext, name: str) -> list[Checkpoint]:
    """The models that this process samples with, or those that it scores with.

    Args:
        run: the run.
        name: "sample_batch_tokens" or "score_batch_tokens".
    """
    found = [run.student(0)]
    if name == SCORED and run.judge is not None:
        found.append(run.judge)
    if name == SAMPLED and run.config.teacher and _teacher_samples(run.config):
        found.append(run.teacher)
    return [model for model in found if not is_served(run.config, model.role)]


def scores_here(run: RunContext, checkpoint: Checkpoint) -> ModelScores:
    """The run's scores, in batches that fit a model in this process that servers run otherwise."""
    scores, device = copy.copy(run.scores), default_device()
    scores.limits = with_fitting_scores(
        scores.limits, run.config, checkpoint, all_memory(device), gpu=is_gpu(device)
    )
    return scores


def _teacher_samples(config: RunConfig) -> bool:
    """Whether the teacher answers prompts, in training, in evaluation or for benchmarks."""
    answers = config.teacher_response != "none" or config.baseline == "seqkd"
    return answers or config.heldout_size != 0 or bool(config.benchmarks)


def _fitting(run: RunContext, name: str) -> int:
    """The tokens that fit with the models that this process samples or scores with."""
    device = default_device()
    return tokens_that_fit(
        name, run.config, models_of(run, name), all_memory(device), gpu=is_gpu(device)
    )
