"""Single values of prompt files and settings: cells as text, and names that may stand only once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any


def cell_text(value: object, place: str) -> str | None:
    """A cell that holds a text or a number, as text; None where it is blank.

    Args:
        value: the cell.
        place: what the message of an error begins with.

    Returns:
        The text as it is; a number in plain digits, without a fraction if it has none, since a
        column of whole numbers with a gap is stored as one of floats.

    Raises:
        ValueError: the cell holds something else, such as a list, or a number that is not finite.

    Example:
        >>> from pad_fast.pipeline.cells import cell_text
        >>> [cell_text(value, "line 1") for value in ("1,234", 5.0, 0.25, 1e-7, " ", None)]
        ['1,234', '5', '0.25', '0.0000001', None, None]
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError(f"{place} must be a text or a number, got {value!r:.80}")
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ValueError(f"{place} must be a finite number or blank, got {value}")
    text = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_value(text: str) -> Any:
    """The value of a JSON text whose objects name each key once.

    Raises:
        ValueError: it is not JSON (a json.JSONDecodeError), or a key stands twice in an object.
    """
    return json.loads(text, object_pairs_hook=_unrepeated)


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
