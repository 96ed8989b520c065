"""Whether a run can write to the folder that it is given."""

from __future__ import annotations

import os
from pathlib import Path


def check_output_dir(path: Path) -> None:
    """Raise ValueError unless ``path`` is a folder that can be written to, or can become one."""
    for place in (path, *path.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK | os.X_OK):
                raise ValueError(
                    f"output_dir: {place} must be a folder that this user may write to, got "
                    f"{str(path)!r}; change its permissions or give another output_dir"
                )
            return
        if place.is_symlink() and not place.exists():
            raise ValueError(
                f"output_dir: {place} is a link to {os.readlink(place)}, which does not exist; "
                "make that folder or give another output_dir"
            )
        if os.path.lexists(place):
            raise ValueError(
                f"output_dir: must be a folder, and {place} is a file, got {str(path)!r}; give "
                "another output_dir"
            )
