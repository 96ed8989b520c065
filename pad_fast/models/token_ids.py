"""What a caller gives to be read, as token ids: texts, messages, or the ids themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from numbers import Integral
from typing import Any

from pad_fast.conversation.chat import Chat
from pad_fast.conversation.given import prompt_token_ids, response_token_ids
from pad_fast.models.layout import TokenIds

PROMPT = "a text, a list of messages, or a list of token ids"
RESPONSE = "a text, a list of one assistant message, or a list of token ids"


class TokenIdReader:
    """Turns prompts and their responses into token ids, each from the form that it has.

    Args:
        tokenizer: of the model; None if all are token ids.
        template_options: for its chat template.
    """

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise ValueError(
                f"tokenizer must be a transformers tokenizer, got {_described(tokenizer)}"
            )
        self.tokenizer, self.template_options = tokenizer, template_options

    def read(
        self, prompts: Any, responses: Any, finish_reasons: Any = None
    ) -> tuple[list[TokenIds], list[list[TokenIds]]]:
        """Token ids of P prompts, and of the responses to each.

        Raises:
            ValueError: something is nested otherwise, or is neither text, messages nor token ids.
                The message names its place, and what to give.
        """
        given = _elements("prompts", prompts, "a list of prompts")
        groups = _elements("responses", responses, "a list with a list of responses a prompt")
        _check_counts("responses", given, groups, "prompts", "one list for each")
        groups = [
            _elements(f"responses[{p}]", group, f"a list of the responses to prompts[{p}]")
            for p, group in enumerate(groups)
        ]
        reasons = _reasons(finish_reasons, groups)
        ids = [self._prompt(f"prompts[{p}]", prompt) for p, prompt in enumerate(given)]
        contexts = [
            (prompt, None if _is_written(prompt) else ids[p]) for p, prompt in enumerate(given)
        ]
        return ids, [
            [
                self._response(f"responses[{p}][{i}]", contexts[p], response, reasons[p][i : i + 1])
                for i, response in enumerate(group)
            ]
            for p, group in enumerate(groups)
        ]

    def _prompt(self, name: str, prompt: Any) -> TokenIds:
        if not _is_written(prompt):
            return _token_ids(name, prompt, PROMPT)
        chat = self._chat_for(name, prompt)
        try:
            return prompt_token_ids(chat, prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _response(
        self, name: str, context: tuple[Any, TokenIds | None], response: Any, reasons: list[str]
    ) -> TokenIds:
        if not _is_written(response):
            return _token_ids(name, response, RESPONSE)
        chat = self._chat_for(name, response)
        try:
            return response_token_ids(chat, *context, [response], reasons)[0]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _chat_for(self, name: str, value: Any) -> Chat:
        if self.tokenizer is None:
            raise ValueError(
                f"{name} is {_described(value)}, which needs the model's tokenizer: pass "
                "tokenizer=AutoTokenizer.from_pretrained(...), or give token ids"
            )
        return self._chat

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.tokenizer, self.template_options)


def _is_written(value: Any) -> bool:
    """Whether a prompt or a response is a text or messages, and no token ids."""
    messages = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, str) or messages


def _elements(name: str, value: Any, rule: str) -> list[Any]:
    """The elements of a list, a tuple, an array or a column of a dataset."""
    wrong = isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__")
    if wrong or getattr(value, "ndim", 1) == 0 or not hasattr(value, "__len__"):
        raise ValueError(f"{name} must be {rule}, got {_described(value)}")
    return list(value)


def _check_counts(name: str, known: list[Any], found: list[Any], of: str, what: str) -> None:
    if len(known) != len(found):
        raise ValueError(f"{name} must hold {what} of the {len(known)} {of}, got {len(found)}")


def _reasons(given: Any, groups: list[list[Any]]) -> list[list[str]]:
    """The finish reasons of each group; empty lists if there are none."""
    if given is None:
        return [[] for _ in groups]
    found = _elements("finish_reasons", given, "a list with a list of reasons a prompt")
    _check_counts("finish_reasons", groups, found, "prompts", "one list for each")
    for p, (reasons, group) in enumerate(zip(found, groups, strict=True)):
        name = f"finish_reasons[{p}]"
        found[p] = _elements(name, reasons, "a list with a reason for each response")
        _check_counts(name, group, found[p], f"responses to prompts[{p}]", "one for each")
    return found


def _token_ids(name: str, value: Any, rule: str) -> TokenIds:
    """The value if it holds token ids, an array as a list."""
    ids = value.tolist() if hasattr(value, "tolist") else value
    wrong = isinstance(ids, (str, bytes, Mapping)) or not hasattr(ids, "__getitem__")
    if wrong or not hasattr(ids, "__len__"):
        raise ValueError(f"{name} must be {rule}, got {_described(value)}")
    if not set(map(type, ids)) - {int}:
        return ids
    ids = [each.item() if getattr(each, "ndim", 1) == 0 else each for each in ids]
    for each in ids:
        if not isinstance(each, Integral) or isinstance(each, bool):
            raise ValueError(f"{name} must be {rule}, got {_described(each)} within {_kind(value)}")
    return [int(each) for each in ids]


def _described(value: Any) -> str:
    """A value in words, with what to give in its place where that is known."""
    if isinstance(value, str):
        return f"the text {value!r:.60}"
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        if "input_ids" in value:
            return (
                f"{_kind(value)} with the keys {keys}; give its input_ids, as lists of different "
                "lengths, since padding would be scored as text"
            )
        if "role" in value:
            return "a single message; a conversation is a list of messages"
        return f"{_kind(value)} with the keys {keys}"
    if shape := getattr(value, "shape", None):
        return f"{_kind(value)} of shape {tuple(shape)}"
    plain = (int, float, list, tuple, type(None))
    return f"{value!r:.60}" if isinstance(value, plain) else _kind(value)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
