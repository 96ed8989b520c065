"""The shape that a JSON value has to have, and what is wrong with one that has another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# str, int, float (which any number is), a list of one shape, an Object, or a function of a value
# and its place that yields what is wrong.
Shape = Any
Check = Callable[[Any, str], Iterator[str]]
_NAMES = {str: "a text", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Object:
    """The shape of a JSON object.

    Args:
        fields: the shape of each field, in the order in which the official tool writes them.
        optional: fields that may be missing.
        ordered: whether another order is a fault.
    """

    fields: Mapping[str, Shape]
    optional: frozenset[str] = field(default_factory=frozenset)
    ordered: bool = True


def faults(value: Any, shape: Shape, at: str = "") -> Iterator[str]:
    """What is wrong with a value, each as a sentence that begins with the place in the value.

    Args:
        value: from a JSON file.
        shape: what it should be.
        at: its place, such as ``choices[0].turns``.

    Example:
        >>> list(faults({"answer": 3}, Object({"answer": str})))
        ['answer must be a text, got 3']
    """
    if isinstance(shape, Object):
        yield from _object_faults(value, shape, at)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{at} must be a list, got {value!r:.60}"
            return
        for place, item in enumerate(value):
            yield from faults(item, shape[0], f"{at}[{place}]")
    elif isinstance(shape, type):
        accepted = (int, float) if shape is float else shape
        if not isinstance(value, accepted) or isinstance(value, bool):
            yield f"{at} must be {_NAMES[shape]}, got {value!r:.60}"
    else:
        yield from shape(value, at)


def _object_faults(value: Any, shape: Object, at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at or 'the row'} must be an object, got {value!r:.60}"
        return
    prefix = f"{at}." if at else ""
    for name in shape.fields:
        if name not in value and name not in shape.optional:
            yield f"{prefix}{name} is missing"
    for name in value:
        if name not in shape.fields:
            yield f"{prefix}{name} is no field of this form"
    found = [name for name in value if name in shape.fields]
    wanted = [name for name in shape.fields if name in value]
    if shape.ordered and found != wanted:
        yield f"{at or 'the row'} must have its fields in the order {', '.join(wanted)}"
    for name in wanted:
        yield from faults(value[name], shape.fields[name], prefix + name)
