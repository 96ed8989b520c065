"""The resident memory of this process, as Linux counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str = "VmRSS") -> int | None:
    """Bytes that are resident now ("VmRSS"), or were at most since :func:`forget_peak` ("VmHWM").

    None where there is no /proc.
    """
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.M)
    return int(found[1]) * 1024 if found else None


def forget_peak() -> bool:
    """Begin a new peak ("VmHWM") with what is resident now; False where that is impossible."""
    try:
        REFERENCES.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
