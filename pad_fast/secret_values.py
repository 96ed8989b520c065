"""Tokens and keys: which names they have, and texts and settings without them.

Settings, variables of the environment and addresses may hold them. None is ever written or printed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(secret)"
NAME = re.compile(r"(?:^|_)(?:token|secret|password|passwd|api_?key|access_?key)$", re.IGNORECASE)
# Tokens of a vocabulary.
VOCABULARY = re.compile(r"^(?:bos|eos|pad|unk|sep|cls|mask|image)_token$", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
SHORTEST = 6  # a shorter value would be found in words that have nothing to do with it

_remembered: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a token, key or password.

    Example:
        >>> [is_secret(name) for name in ("hub_token", "WANDB_API_KEY", "max_tokens", "eos_token")]
        [True, True, False, False]
    """
    return bool(NAME.search(name)) and not VOCABULARY.search(name)


def without_secrets(value: Any) -> Any:
    """Settings without those that are secret, at any depth, and addresses without passwords.

    Example:
        >>> without_secrets({"hub_token": "hf_1", "init": {"token": "hf_2", "revision": "main"}})
        {'init': {'revision': 'main'}}
        >>> without_secrets({"init": '{"token": "hf_2", "revision": "main"}'})
        {'init': '{"revision": "main"}'}
    """
    if isinstance(value, Mapping):
        return {
            name: without_secrets(item) for name, item in value.items() if not is_secret(str(name))
        }
    if type(value) in (list, tuple):
        return type(value)(map(without_secrets, value))
    if not isinstance(value, str):
        return value
    options = _options(value)
    kept = without_secrets(options)
    return IN_ADDRESS.sub(HIDDEN, value if kept == options else json.dumps(kept))


def _options(text: str) -> dict[str, Any]:
    """The object in a setting that is JSON, such as ``model_init_kwargs``; else an empty one."""
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def remember_secrets(value: Any, name: str = "") -> None:
    """Note the secrets in settings, so that :func:`hide_secrets` finds them in any text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            remember_secrets(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            remember_secrets(item, name)
    elif is_secret(name) and value is not None and len(str(value)) >= SHORTEST:
        _remembered.add(str(value))
    elif isinstance(value, str):
        remember_secrets(_options(value))


def hide_secrets(text: str) -> str:
    """The text with "(secret)" for each secret of the environment and of remembered settings."""
    known = {value for name, value in os.environ.items() if is_secret(name)} | _remembered
    for value in sorted(known, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return IN_ADDRESS.sub(HIDDEN, text)


class HideSecrets(logging.Filter):
    """Hides the secrets in every record of a log."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = hide_secrets(record.getMessage()), ()
        return True
