"""The number of tokens of an answer, as Arena-Hard's style control counts them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("pad_fast")

ENCODING_OF = "gpt-4o"  # arena-hard-auto counts in this model's encoding


def token_counter(tokenizer: Any) -> tuple[Callable[[str], int], str]:
    """A function that counts tokens, and the name of what it counts in.

    tiktoken's encoding is the official one. It comes from the network when it is first used; where
    it is not to be had, the model's own tokenizer counts, and a warning says so.
    """
    try:
        import tiktoken

        encoding = tiktoken.encoding_for_model(ENCODING_OF)
    except Exception as error:  # not installed, or whatever its network library raises
        logger.warning(
            "token_len is counted by the model's own tokenizer, not by tiktoken's for %s (%s); "
            "style control compares it with the baseline's: pip install tiktoken",
            *(ENCODING_OF, type(error).__name__),
        )
        return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), "own"
    return lambda text: len(encoding.encode(text, disallowed_special=())), ENCODING_OF
