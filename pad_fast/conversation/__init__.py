"""Chat messages as text and as token ids."""

from pad_fast.conversation.text import conversation_text, with_input

__all__ = ["conversation_text", "with_input"]
