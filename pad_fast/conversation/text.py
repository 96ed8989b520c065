"""Chat messages as one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def conversation_text(messages: str | Sequence[Mapping[str, Any]]) -> str:
    r"""The text of a conversation, which is the content of a single message.

    Several messages become a line ``role: content`` each.

    Args:
        messages: chat messages with the keys ``role`` and ``content``, or a text, which is
            returned as it is.

    Example:
        >>> conversation_text([{"role": "user", "content": "2+2=?"}])
        '2+2=?'
        >>> turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        >>> conversation_text(turns)
        'system: Be brief.\nuser: Hi'
    """
    if isinstance(messages, str):
        return messages
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def with_input(instruction: str, given: Any) -> str:
    r"""An instruction with the input that it is about, as Alpaca keeps the two apart.

    Args:
        instruction: what is to be done.
        given: what it is to be done to; None or blank if the instruction says all.

    Example:
        >>> with_input("Translate to German.", "The boat is late.")
        'Translate to German.\n\nThe boat is late.'
        >>> with_input("Name a colour.", "")
        'Name a colour.'
    """
    return f"{instruction}\n\n{given}" if isinstance(given, str) and given.strip() else instruction
