"""From rows of scored responses to token ids."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral
from typing import Any

from transformers import PreTrainedTokenizerBase

from pad_fast.conversation import with_input
from pad_fast.conversation.chat import Chat
from pad_fast.conversation.given import as_list, prompt_token_ids, response_token_ids
from pad_fast.conversation.long_prompts import fitted_prompt
from pad_fast.conversation.pairs import BY_RANK, holds_pair, pair_in
from pad_fast.training.row_columns import (
    anchor_as_read,
    check_reward,
    more_columns,
    part_of,
    shown,
    without_repeats,
)

# The names of the columns in TRL's PRM data, distilabel, EasyDistill and LLaMA-Factory.
ALIASES = {
    "prompt": ("instruction", "question"),
    "completions": ("responses", "generations", "candidates"),
    "teacher_rewards": ("rewards", "scores", "ratings"),
}
COUNTS = ("num_live", "num_cut", "num_repeats", "num_long", "num_by_rank")  # counted and dropped
# What is read of a row whose prompt is too long, and which is left out.
LEFT_OUT: dict[str, Any] = {
    "prompt_ids": [],
    "completion_ids": [],
    "teacher_rewards": [],
    "anchor_rewards": None,
    "from_teacher": [],
    "clipped": [],
    "length": 0,
    **dict.fromkeys(COUNTS, 0),
    "num_long": 1,
}
LARGEST_ID = 2**31 - 1
UNLIMITED = 1 << 62  # tokens


@dataclass
class RowReader:
    """Turns a row into token ids.

    A row has ``prompt`` (text, or messages) or ``prompt_ids``; ``completions`` (texts, or lists of
    one message) or ``completion_ids``; ``teacher_rewards``, null for a response that is left out;
    and perhaps ``finish_reasons``, ``anchor_rewards`` (under the model before a training; None
    once cut) and ``from_teacher`` (true for the teacher's own).

    ``chosen`` and ``rejected`` are two completions, which may hold the prompt in front. Their
    rewards are ``teacher_rewards``, else ``score_chosen`` and ``score_rejected``, else 1 and 0.

    Args:
        tokenizer: for texts.
        vocabulary: number of token ids; None for no check.
        max_length: most tokens of prompt and response, which is cut at its end.
        max_completion_length: most tokens of a response.
        mask_truncated: leave out responses that were cut, or whose finish reason is "length".
        template_options: for the chat template.
        now: the time of a chat template.
        train_on: of ``PADConfig``.
        repeats: "once" leaves out all but the first of equal responses, with their mean reward.
        max_prompt_length: most tokens of a prompt.
        long_prompts: "error", "drop" or "cut", for a longer prompt.

    Raises:
        ValueError: the row cannot be read.

    Example:
        >>> row = {"prompt_ids": [1], "completion_ids": [[3, 4], [5]], "teacher_rewards": [0.5, 1]}
        >>> found = RowReader(max_length=2)(row, 0)
        >>> found["completion_ids"], found["teacher_rewards"]
        ([[3], [5]], [0.5, 1.0])
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    vocabulary: int | None = None
    max_length: int | None = None
    max_completion_length: int | None = None
    mask_truncated: bool = False
    template_options: dict = field(default_factory=dict)
    now: datetime.datetime | None = None
    train_on: str = "all"
    repeats: str = "once"
    max_prompt_length: int | None = None
    long_prompts: str = "error"

    def __getstate__(self) -> dict[str, Any]:  # what datasets hashes, and sends to its processes
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        try:
            return self._read(
                {name: value for name, value in _canonical(row).items() if value is not None}
            )
        except RecursionError:
            raise ValueError(f"row {index}: it is nested too deeply to be read") from None
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None

    def _read(self, row: dict[str, Any]) -> dict[str, Any]:
        fitted = self._fitted(self._prompt_ids(row))
        if fitted is None:
            return dict(LEFT_OUT)
        prompt_ids, is_cut = fitted
        reasons = as_list("finish_reasons", row.get("finish_reasons") or [])
        completion_ids = self._completion_ids(row, reasons)
        rewards = as_list("teacher_rewards", _column(row, "teacher_rewards"))
        if len(rewards) != len(completion_ids) or (reasons and len(reasons) != len(completion_ids)):
            raise ValueError(
                "teacher_rewards (and finish_reasons) must hold one value for each completion, "
                f"got {len(completion_ids)} completions, {len(rewards)} teacher_rewards and "
                f"{len(reasons)} finish_reasons"
            )
        anchor, own = more_columns(row, len(completion_ids))
        room = self._room(len(prompt_ids))
        long = [room is not None and len(ids) > room for ids in completion_ids]
        clipped = [cut or (bool(reasons) and reasons[i] == "length") for i, cut in enumerate(long)]
        completion_ids = [list(ids[:room]) for ids in completion_ids]
        live = [
            check_reward("teacher_rewards", reward, i)
            and len(ids) > 0
            and not (self.mask_truncated and clipped[i])
            and (self.train_on == "all" or (self.train_on == "teacher") == own[i])
            for i, (reward, ids) in enumerate(zip(rewards, completion_ids, strict=True))
        ]
        teacher = [float(rewards[i]) if alive else None for i, alive in enumerate(live)]
        if self.repeats == "once":
            teacher, own = without_repeats(completion_ids, teacher, own)
        num_repeats = sum(live) - sum(reward is not None for reward in teacher)
        teacher = part_of(teacher, self.train_on)
        num_live = sum(reward is not None for reward in teacher)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "teacher_rewards": teacher,
            "anchor_rewards": anchor_as_read(anchor, live, [is_cut or cut for cut in long]),
            "from_teacher": own,
            "clipped": clipped,
            "num_cut": sum(long),
            "num_repeats": num_repeats,
            "num_long": int(is_cut),
            "num_by_rank": int(row.get("by_rank", False)),
            "num_live": num_live,
            "length": len(prompt_ids) + max(map(len, completion_ids), default=0),
        }

    def _prompt_ids(self, row: dict[str, Any]) -> list[int]:
        ids = row.get("prompt_ids")
        if ids is None:
            prompt = _column(row, "prompt", "prompt_ids")
            ids = prompt_token_ids(self._chat_for("prompt"), prompt)
        ids = self._check_ids("prompt_ids", ids)
        if len(ids) == 0:
            raise ValueError(
                "prompt must have at least one token, from which a response's first is predicted"
            )
        return ids

    def _fitted(self, ids: list[int]) -> tuple[list[int], bool] | None:
        """A prompt that fits and whether it was cut for that; None if its row is left out."""

        def problem() -> str:
            rule = (
                f"leave room for a response in max_length={self.max_length} tokens"
                if room < most
                else f"have at most max_prompt_length={most} tokens"
            )
            return (
                f"prompt must {rule}, got {len(ids)} tokens; shorten it, or set long_prompts to "
                "drop or cut"
            )

        most = UNLIMITED if self.max_prompt_length is None else self.max_prompt_length
        room = min(most, UNLIMITED if self.max_length is None else self.max_length - 1)
        bos = getattr(self.tokenizer, "bos_token_id", None)
        found = fitted_prompt(ids, room, self.long_prompts, problem, bos)
        return None if found is None else (list(found), len(found) < len(ids))

    def _completion_ids(self, row: dict[str, Any], reasons: list[str]) -> list[list[int]]:
        if row.get("completion_ids") is not None:
            return [
                self._check_ids("completion_ids", ids)
                for ids in as_list("completion_ids", row["completion_ids"])
            ]
        texts = as_list("completions", _column(row, "completions", "completion_ids"))
        chat, prompt, ids = self._chat_for("completions"), row.get("prompt"), row.get("prompt_ids")
        ids = None if ids is None else as_list("prompt_ids", ids)
        return response_token_ids(chat, prompt, ids, texts, reasons)

    def _chat_for(self, column: str) -> Chat:
        if self.tokenizer is None:
            raise ValueError(
                f"{column} is text, which needs a processing_class (a tokenizer), got none; "
                "or give token ids"
            )
        return self._chat

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.tokenizer, self.template_options, now=self.now)

    def _check_ids(self, name: str, ids: Any) -> list[int]:
        ids = as_list(
            name,
            ids,
            "a list of token ids" if name == "prompt_ids" else "lists of token ids, one a response",
        )
        if wrong := [
            token for token in ids if not isinstance(token, Integral) or isinstance(token, bool)
        ]:
            raise ValueError(f"{name} must hold integers, got {wrong[0]!r}")
        most = LARGEST_ID if self.vocabulary is None else self.vocabulary - 1
        if len(ids) and not (min(ids) >= 0 and max(ids) <= most):
            bad = next(token for token in ids if not 0 <= token <= most)
            raise ValueError(f"{name} must lie in 0..{most}, got {shown(bad)}")
        return ids

    def _room(self, prompt_length: int) -> int | None:
        limits = [] if self.max_length is None else [self.max_length - prompt_length]
        limits += [] if self.max_completion_length is None else [self.max_completion_length]
        return min(limits) if limits else None


def _canonical(row: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(row)
    for name, others in ALIASES.items():
        for other in others:
            if found.get(name) is None and found.get(other) is not None:
                found[name] = found[other]
                if other == "instruction" and isinstance(found[name], str):
                    found[name] = with_input(found[name], found.get("input"))
    given = found.get("completions") is not None or found.get("completion_ids") is not None
    return found if given or not holds_pair(found) else _of_pair(found)


def _of_pair(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a chosen and a rejected response as one with two completions and rewards."""
    pair = pair_in(row)
    found = {**row, "completions": pair.texts}
    if pair.prompt:
        found["prompt"] = pair.prompt
    if found.get("teacher_rewards") is None:
        found["teacher_rewards"] = BY_RANK if pair.scores is None else pair.scores
        found["by_rank"] = pair.scores is None
    return found


def _column(row: dict[str, Any], name: str, alternative: str | None = None) -> Any:
    if name not in row:
        names = f"{name} or {alternative}" if alternative else name
        raise ValueError(
            f"a row must have {names} (or {', '.join(ALIASES[name])}), "
            f"got the columns {', '.join(row)}"
        )
    return row[name]
