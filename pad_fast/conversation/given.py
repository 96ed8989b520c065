"""Prompts and responses in the forms in which users give them, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pad_fast.conversation.chat import Chat
from pad_fast.conversation.responses import encoded_response


def as_list(name: str, value: Any, rule: str = "a list with one value for each response") -> list:
    """``value`` as a list; an array or a tensor becomes one.

    Raises:
        ValueError: it is something else, such as a text, which has a length and parts too.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be {rule}, got {value!r:.80}")
    return list(value)


def prompt_token_ids(chat: Chat, prompt: Any) -> list[int]:
    """The token ids of a prompt up to where its responses begin.

    Args:
        chat: tokenizer and chat template of the model that reads it.
        prompt: a text, which gets the BOS that it lacks; or messages, which pass the template.

    Raises:
        ValueError: it is neither, or the template refuses it or leaves out a part of it.
    """
    if isinstance(prompt, str):
        return chat.encoder.prompt(prompt)
    messages = as_list("prompt", prompt, "a text or a list of messages")
    if not messages or not all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and ("content" in message or "tool_calls" in message)
        for message in messages
    ):
        raise ValueError(
            "prompt must be a text or a list of messages with a role and a content, "
            f"got {prompt!r:.80}"
        )
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "prompt must end before the assistant's turn, since a response follows there; got an "
            f"assistant message at its end, {messages[-1].get('content')!r:.60}"
        )
    chat.check(messages)
    return chat.prompt_ids(messages)


def response_text(response: Any) -> str:
    """The text of a response, which is a text or a list of one assistant message.

    Raises:
        ValueError: it is neither.

    Example:
        >>> response_text([{"role": "assistant", "content": "Red."}])
        'Red.'
    """
    if isinstance(response, str):
        return response
    if (
        isinstance(response, (list, tuple))
        and len(response) == 1
        and isinstance(response[0], Mapping)
    ):
        (message,) = response
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            return message["content"]
    raise ValueError(
        f"a completion must be a text or a list of one assistant message, got {response!r:.80}"
    )


def response_token_ids(
    chat: Chat,
    prompt: Any,
    prompt_ids: Sequence[int] | None,
    responses: Sequence[Any],
    reasons: Sequence[str] = (),
) -> list[list[int]]:
    """The token ids of responses as they follow their prompt, with the end of the turn.

    Args:
        chat: tokenizer and chat template of the model that reads them.
        prompt: the text or the messages before them.
        prompt_ids: the prompt's token ids, where these are given and not what they stand for.
        responses: see :func:`response_text`.
        reasons: why each ended, or none; after "length" a response gets no end token that it does
            not spell itself.

    Raises:
        ValueError: one is no response, or the tokenizer has no end token.
    """
    if prompt_ids is not None:
        prompt = str(chat.tokenizer.decode(list(prompt_ids)))
    found = []
    for i, response in enumerate(responses):
        cut = i < len(reasons) and reasons[i] == "length"
        found.append(encoded_response(chat, prompt, response_text(response), cut=cut)[1])
    return found
