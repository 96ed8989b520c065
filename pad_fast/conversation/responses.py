"""A response as text and as token ids, with the token that ends it."""

from __future__ import annotations

from typing import Any

from pad_fast.conversation.chat import Chat


def encoded_response(chat: Chat, prompt: Any, text: str, *, cut: bool) -> tuple[str, list[int]]:
    """A response without the end token that it may spell, and its token ids with an end token.

    Args:
        chat: tokenizer and chat template of the model that is trained.
        prompt: what is responded to, a text or messages for the chat template.
        text: the response.
        cut: whether the response was cut, and gets no end token that it does not spell itself.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    plain = isinstance(prompt, str)
    end = chat.tokenizer.eos_token_id if plain else chat.end_of_turn_id
    if end is None:
        raise ValueError(
            "completions need a tokenizer with an EOS token, got one without; "
            "or give completion_ids"
        )
    text, own_end = _without_end(text, chat.tokenizer, end)
    ids = chat.encoder.following(prompt, text) if plain else chat.response_ids(prompt, text)
    last = end if own_end is None and not cut else own_end
    return text, ids if last is None else [*ids, last]


def _without_end(text: str, tokenizer: Any, end: int) -> tuple[str, int | None]:
    """A response without the end token that it spells at its end, and the id of that token."""
    for token in (end, tokenizer.eos_token_id):
        spelled = None if token is None else tokenizer.convert_ids_to_tokens(token)
        if spelled and text.rstrip().endswith(spelled):
            return text.rstrip().removesuffix(spelled), token
    return text, None
