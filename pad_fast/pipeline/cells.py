"""Single values of prompt files: cells as text."""

from __future__ import annotations

import math
from decimal import Decimal


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
