"""A setting: a dataclass field that is also a flag of the command line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from typing import Any


def option(default: Any, help: str, choices: Collection[str] | None = None) -> Any:
    """A dataclass field with the help text and the choices of its command line flag."""
    metadata: dict[str, Any] = {"help": help}
    if choices is not None:
        metadata["choices"] = choices
    return field(default=default, metadata=metadata)
