"""How rows of prompts and responses become token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

from pad_fast.training.options.argument import argument

PARTS = ("all", "own", "teacher", "best", "pair")


@dataclass
class DataArguments:
    """How rows of prompts and responses become token ids."""

    train_on: str = argument(
        "all",
        "Which responses train: all; teacher (those that rows mark as the teacher's own in "
        "from_teacher); own (the others); best or pair (of these the one with the highest reward, "
        "or it and the one with the lowest, where a loss compares no others).",
    )
    max_length: int | None = argument(
        2048,
        "Most tokens of a prompt with a response; a longer response is cut. None: the model's "
        "window.",
    )
    max_prompt_length: int | None = argument(
        None,
        "Most tokens of a prompt. Default: one less than max_length, which leaves room for one "
        "token of a response.",
    )
    long_prompts: str = argument(
        "error",
        "Whether a longer prompt is an error, drops its row (drop), or is cut at its start (cut), "
        "where it keeps its BOS.",
    )
    max_completion_length: int | None = argument(
        None,
        "Most tokens of a response; a longer one is cut, and keeps the teacher's reward of the "
        "whole.",
    )
    mask_truncated_completions: bool = argument(
        False,
        "Leave out responses that do not end by themselves: those that were cut, and those with "
        "finish reason length.",
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "More arguments for the chat template of conversational prompts."},
    )
    dataset_num_proc: int | None = argument(None, "Processes that prepare the data.")
