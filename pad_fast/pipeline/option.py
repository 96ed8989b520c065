"""A setting: a dataclass field that is also a flag of the command line, and checks of its value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from typing import Any

from pad_fast.files.json_text import json_value


def option(default: Any, help: str, choices: Collection[str] | None = None) -> Any:
    """A dataclass field with the help text and the choices of its command line flag."""
    metadata: dict[str, Any] = {"help": help}
    if choices is not None:
        metadata["choices"] = choices
    return field(default=default, metadata=metadata)


def json_object(name: str, given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """The object of a setting that the command line gives as a JSON text.

    Raises:
        ValueError: the text is no JSON object.
    """
    if not isinstance(given, str):
        return given
    try:
        value = json_value(given)
    except ValueError as error:
        raise ValueError(f"{name}: must be JSON ({error}), got {given!r}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a JSON object, got {given!r}")
    return value


def check_choices(options: Any, *names: str) -> None:
    """Raise ValueError for a setting that is none of the choices of its field."""
    for name in names:
        choices, value = (
            options.__dataclass_fields__[name].metadata["choices"],
            getattr(options, name),
        )
        if value not in choices:
            raise ValueError(f"{name}: must be one of {', '.join(choices)}, got {value!r}")
