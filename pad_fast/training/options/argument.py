"""An argument of a training: a dataclass field with its help."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def argument(default: Any, help: str) -> Any:
    """A dataclass field with the help text of its command line flag."""
    return field(default=default, metadata={"help": help})
