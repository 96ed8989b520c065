"""Prompts to train on and to evaluate on, and responses that were sampled elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pad_fast.pipeline.option import option


@dataclass
class PromptOptions:
    """Prompts to train on and to evaluate on, and responses that were sampled elsewhere."""

    prompts: str | None = option(
        None, "Training prompts: a .jsonl, .json, .csv or .parquet file, or a dataset's name."
    )
    heldout: str | None = option(
        None, "Held-out prompts. They are given like prompts. Default: some of prompts."
    )
    responses: str | None = option(
        None,
        "Prompts with responses that were sampled elsewhere, in place of prompts: a file or a "
        "dataset; scores in it are the rewards. They are those of the first round.",
    )
    responses_scores: Literal["keep", "ignore"] = option(
        "keep", "ignore: the teacher or the reward model scores responses that have scores too."
    )
    prompts_split: str = option("train", "Split of prompts, if it is a dataset.")
    heldout_split: str = option("test", "Split of heldout, if it is a dataset.")
    responses_split: str = option("train", "Split of responses, if they are a dataset.")
    prompts_subset: str | None = option(
        None, "Configuration name of the datasets of prompts, responses and heldout."
    )
    heldout_size: int | None = option(
        None,
        "Number of prompts to evaluate on. Default: all of heldout, or a tenth of prompts but at "
        "most 256.",
    )
    validation_size: int | None = option(
        None,
        "Training prompts that no round trains on, and on which each student's greedy answers are "
        "measured: by the right answers, or where there are none by the teacher's rewards. "
        "Default: a tenth, at most 128; none if that is below 16.",
    )
    max_prompt_length: int | None = option(
        None,
        "Longest prompt, in tokens of the student. Default: the model's window minus "
        "max_new_tokens.",
    )
    long_prompts: Literal["error", "drop"] = option(
        "error", "Whether a longer prompt stops the run or is dropped."
    )
