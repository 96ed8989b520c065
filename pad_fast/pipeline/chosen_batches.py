"""A run's batches: those of its settings, or those that fit the device where they are left open."""

from __future__ import annotations

from pad_fast.device import all_memory, default_device, is_gpu
from pad_fast.pipeline.batch_sizes import SAMPLED, SCORED, BatchTokens, tokens_that_fit
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.whole_files import write_json

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


def _fitting(run: RunContext, name: str) -> int:
    """The tokens that fit with the models that this process samples and scores with."""
    device, config = default_device(), run.config
    models = [run.student(0), *([run.teacher] if config.teacher else [])]
    own = [model for model in models if not run.engines.are_servers(model)]
    return tokens_that_fit(name, config, own, all_memory(device), gpu=is_gpu(device))
