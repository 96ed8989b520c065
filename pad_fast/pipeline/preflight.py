"""What is checked before a run loads weights or samples: its models, settings and prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pad_fast.conversation.encoding import control_tokens
from pad_fast.conversation.long_prompts import fitted_prompt
from pad_fast.files.stored_rows import Row, Rows
from pad_fast.pipeline import given_responses, hub, multiple_choice, prompts
from pad_fast.pipeline.checkpoint import PROBES, Checkpoint
from pad_fast.pipeline.config import RunConfig

logger = logging.getLogger("pad_fast")

UNLIMITED = 1 << 62


def check_sources(config: RunConfig) -> None:
    """Raise ValueError for models and prompts that are neither here nor on the hub.

    The hub is asked once about each, for a few seconds at most, before any of them is loaded.
    """
    named = {
        "student": ("models", config.student, config.student_revision),
        "teacher": ("models", config.teacher, config.teacher_revision),
        "reward_model": ("models", config.reward_model, config.reward_model_revision),
        "responses": ("datasets", config.responses, None),
        "prompts": ("datasets", config.prompts, None),
        "heldout": ("datasets", config.heldout, None),
    }
    for setting, (kind, source, revision) in named.items():
        if source is None or Path(source).exists():
            continue
        if not hub.may_be_name(source) or Path(source).suffix in prompts.FILES:
            raise ValueError(f"{setting}: no such file or folder, {source}")
        if (problem := hub.problem(kind, source, revision)) is not None:
            one = "a model" if kind == "models" else "a dataset"
            raise ValueError(
                f"{setting}: {source} is neither a file nor a folder here, nor {one} that the hub "
                f"gives: {problem}"
            )


def read_split(config: RunConfig, keep: Callable[[Iterator[Row]], Rows]) -> tuple[Rows, Rows]:
    """The training prompts and the held-out prompts; with given responses, rows of both.

    Args:
        config: of the run.
        keep: holds what is read, such as ``list``, or a function that writes it to disk.

    Raises:
        ValueError: a row is wrong; the message names the file and its line or row.
    """
    if config.responses:
        rows = given_responses.iter_responses(config)
    else:
        rows = prompts.iter_prompts(
            str(config.prompts), config.prompts_split, config.prompts_subset
        )
    train = keep(rows)
    if config.heldout is None:
        train, heldout = prompts.split_heldout(train, config.heldout_size)
    else:
        heldout = keep(_heldout(config, config.heldout))[: config.heldout_size]
    # Rows with responses to one prompt, of which some are held out, are left out as well.
    return prompts.without(train, heldout), heldout


def _heldout(config: RunConfig, source: str) -> Iterator[Row]:
    """The held-out rows of a file or dataset of their own."""
    if config.responses:
        return given_responses.iter_heldout(config)
    return prompts.iter_prompts(source, config.heldout_split, config.prompts_subset, "heldout")


def check_models(config: RunConfig, student: Checkpoint, judge: Checkpoint | None) -> None:
    """Raise ValueError for what would otherwise fail only after hours of sampling.

    Args:
        config: the run's settings.
        student: the base student.
        judge: the teacher or the reward model; None if the run has neither.
    """
    for checkpoint in filter(None, (student, judge)):
        _ = checkpoint.model_class, checkpoint.tokenizer, checkpoint.eos_token_ids
        check_tokens(checkpoint)
        if checkpoint.window is not None and checkpoint.window <= config.max_new_tokens:
            raise ValueError(
                f"max_new_tokens: must leave room for a prompt in the {checkpoint.role}'s window "
                f"of {checkpoint.window} tokens, got {config.max_new_tokens}"
            )
    if config.asks and judge is not None:
        multiple_choice.letter_token_ids(judge.tokenizer, config.letters)


def check_tokens(checkpoint: Checkpoint) -> None:
    """Raise ValueError for tokens of a tokenizer that the model's embedding has no row for.

    What a text can hold counts, and so do padding, ends and what the chat template writes. Other
    control tokens, such as those of images, are never used.
    """
    tokenizer, control = checkpoint.tokenizer, control_tokens(checkpoint.tokenizer)
    if tokenizer.pad_token_id is not None:
        checkpoint.check_ids([tokenizer.pad_token_id], "the padding")
    checkpoint.check_ids(checkpoint.eos_token_ids, "the end of a text")
    for text in checkpoint.chat.probes(PROBES):
        checkpoint.check_ids(checkpoint.chat.encoder.ids(text or ""), "the chat template")
    in_texts = (index for index, token in checkpoint.known_ids.items() if token not in control)
    checkpoint.check_ids(in_texts, "the tokenizer")


def check_prompts(rows: Iterable[Row], student: Checkpoint, judge: Checkpoint | None) -> None:
    """Raise ValueError for a prompt of which a chat template leaves out the text of a message.

    A template may leave out a message, such as the system's, without a word: the model would answer
    and score another conversation than the one in the file.
    """
    readers = [student]
    if judge is not None and not judge.reads_prompts_as(student):
        readers.append(judge)
    for row in rows:
        try:
            for checkpoint in readers:
                checkpoint.chat.check(checkpoint.messages(row["prompt"]))
        except ValueError as error:
            raise ValueError(f"{row['place']}: {error}") from None


def fitting(
    rows: Rows,
    config: RunConfig,
    student: Checkpoint,
    judge: Checkpoint | None,
    max_length: int | None,
    longest: dict[str, int] | None = None,
) -> Iterator[Row]:
    """The rows whose prompt and longest response fit both models, with ``prompt_ids`` added.

    Args:
        rows: prompts, as :func:`pad_fast.pipeline.prompts.iter_prompts` returns them.
        config: the run's settings.
        student: the base student.
        judge: the teacher or the reward model; None if the run has neither.
        max_length: of the training, in tokens. It cuts responses, but a prompt must leave room for
            one token.
        longest: is given the tokens of the longest prompt that fits, by each model's role.

    Raises:
        ValueError: a prompt is too long and long_prompts is "error", or a chat template refuses it.
    """
    room = {
        which.role: (which.window or UNLIMITED) - config.max_new_tokens
        for which in filter(None, (student, judge))
    }
    room["student"] = min(
        room["student"], config.max_prompt_length or UNLIMITED, (max_length or UNLIMITED) - 1
    )
    other = None if judge is None or judge.reads_prompts_as(student) else judge
    kept = 0
    for row in rows:
        place = row.pop("place")
        try:
            ids = {"student": student.prompt_ids(row["prompt"])}
            if judge is not None:
                ids[judge.role] = other.prompt_ids(row["prompt"]) if other else ids["student"]
            for checkpoint in filter(None, (student, judge)):
                checkpoint.check_ids(ids[checkpoint.role], "the prompt")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if _fits(f"{place}: the prompt", row, ids, room, config.long_prompts):
            kept += 1
            if longest is not None:
                longest |= {role: max(longest.get(role, 0), len(ids[role])) for role in ids}
            yield {**row, "prompt_ids": ids["student"]}
    if kept < len(rows):
        logger.warning("%d of %d prompts are too long and are dropped", len(rows) - kept, len(rows))


def _fits(
    name: str, row: Row, ids: Mapping[str, Sequence[int]], room: Mapping[str, int], rule: str
) -> bool:
    """Whether a prompt fits, by its token ids for each model; the rule may raise ValueError."""

    def problem(role: str) -> str:
        return (
            f"{name} has {len(ids[role])} tokens for the {role}, where at most "
            f"{room[role]} are allowed (its window minus max_new_tokens, max_prompt_length, "
            "or less than max_length); shorten it or set long_prompts to drop: "
            f"{row['prompt'][-1]['content']!r:.60}"
        )

    found = [fitted_prompt(ids[role], room[role], rule, partial(problem, role)) for role in ids]
    return None not in found
