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
