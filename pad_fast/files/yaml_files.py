"""YAML as users write settings: each key once, and errors that name the file and the line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pad_fast.files.json_text import check_text, times
from pad_fast.files.user_files import text_lines

MOST_NODES = 10_000  # keys and values of a file, counted anew where an alias repeats them
INTEGER, MERGE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """The value in a YAML file.

    Raises:
        ValueError: it is not UTF-8 or not YAML, a key stands twice in a mapping, or something is
            too long or nested too deeply. The message names the file and mostly the line.
    """
    text = "".join(line for _, line in text_lines(path))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        for count, message in enumerate(_faults(root)):
            if message:
                raise ValueError(message)
            if count > MOST_NODES:
                raise ValueError(f"it holds more than {MOST_NODES} keys and values")
        return yaml.safe_load(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"{path} is not YAML: line {line} holds the character {chr(error.character)!a}, which "
            "YAML does not allow"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {_syntax_fault(error)}") from None
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply, or holds itself") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _syntax_fault(error: yaml.YAMLError) -> str:
    """What is wrong and in which line; not the line itself, which may hold a token."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{problem or 'it cannot be read'} in line {mark.line + 1}, column {mark.column + 1}"


def _faults(node: yaml.Node | None) -> Iterator[str]:
    """What is wrong with each key and value of a document; an empty text where nothing is.

    A mapping may repeat keys of another that it merges with ``<<``, since that is what merging is
    for.
    """
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, list[str]] = {}
        for key, value in node.value:
            lines.setdefault(str(key.value), []).append(str(_line(key)))
            yield from _faults(key)
            yield from _faults(value)
        for name, found in lines.items():
            if len(found) > 1:
                places = f"{', '.join(found[:-1])} and {found[-1]}"
                yield f"{name} stands {times(len(found))}, in lines {places}"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _faults(item)
    elif isinstance(node, yaml.ScalarNode):
        yield _scalar_fault(node)


def _scalar_fault(node: yaml.ScalarNode) -> str:
    """What is wrong with a single value."""
    most = sys.get_int_max_str_digits()
    if node.tag == INTEGER and 0 < most < len(node.value):
        return f"line {_line(node)} holds a number of more than {most} digits"
    try:
        check_text(node.value, f"line {_line(node)}")
        if node.tag != MERGE:
            yaml.SafeLoader("").construct_document(node)
    except ValueError as error:  # such as a date of the 13th month
        return str(error) if str(error).startswith("line") else f"line {_line(node)}: {error}"
    return ""


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
