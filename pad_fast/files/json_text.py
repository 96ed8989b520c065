"""JSON as users write it: each key once, and errors that name the place and say what is wrong."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Half of a character that takes two in UTF-16, as JSON spells it; both halves match too.
HALF = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str) -> Any:
    """The value of a JSON text whose objects name each key once.

    Raises:
        ValueError: it is not JSON (a json.JSONDecodeError), a key stands twice in an object, a text
            holds half of a character, or a number or the nesting is beyond the parser.
    """
    with _limits():
        value = json.loads(text, object_pairs_hook=_unrepeated)
        _check_whole(value, text)
    return value


def placed_value(text: str, place: str) -> Any:
    """The value of a JSON text, where the messages of errors begin with ``place``."""
    with _named(place):
        return json_value(text)


def placed_items(text: str, source: str) -> Iterator[tuple[str, Any]]:
    """The place and the value of each item of a JSON list.

    Raises:
        ValueError: as :func:`json_value`; the message has the source, and the item's row and line.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unrepeated)
    position, row = _skipped(text, text.index("[") + 1), 0
    after = "]" if text.startswith("]", position) else ","
    while after == ",":
        row, start = row + 1, position
        place = f"{source}: row {row}, line {text.count(chr(10), 0, start) + 1}"
        with _named(place), _limits():
            value, end = decoder.raw_decode(text, position)
            position = _skipped(text, end)
            after = text[position : position + 1]
            if after not in ("]", ","):
                raise json.JSONDecodeError("a comma or ] is missing", text, position)
            _check_whole(value, text[start:end])
        position = _skipped(text, position + (after == ","))
        yield place, value
    if rest := text[position + 1 :].strip():
        raise ValueError(f"{source}: something follows the list: {rest!r:.40}")


def _skipped(text: str, position: int) -> int:
    """The position of the next character that is not white."""
    found = re.compile(r"\s*").match(text, position)
    assert found is not None
    return found.end()


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise ValueError(f"{place} is not JSON: {error.msg} at {where}") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """The parser's own limits as errors in words."""
    try:
        yield
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        most = sys.get_int_max_str_digits()
        raise ValueError(
            f"it holds a number of more than {most} digits; write it as a text"
        ) from None


def _check_whole(value: Any, text: str) -> None:
    """Raise ValueError if a text in ``value`` holds half of a character."""
    if HALF.search(text):
        for name, found in texts(value):
            check_text(found, name or "the text")


def texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Each text in a value, keys included, with the path to it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key, f"{name} key".strip())
            yield from texts(item, f"{name}.{key}".strip("."))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from texts(item, f"{name}[{index}]")


def check_text(text: str, name: str = "the text") -> None:
    """Raise ValueError if a text cannot be written as UTF-8.

    Python's texts may hold one half of a character that takes two in UTF-16, such as an emoji that
    was cut in the middle. No file and no tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half of a character, {text[error.start]!a} at position "
            f"{error.start + 1} (a surrogate without its pair); remove it or write the whole one"
        ) from None


def _unrepeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} stands {times(names.count(repeated))}")
    return found


def times(count: int) -> str:
    """``twice``, ``3 times`` and so on."""
    return "twice" if count == 2 else f"{count} times"
