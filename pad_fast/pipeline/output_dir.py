"""The folder of a run: where it is if none is given, and whether a run can write to it."""

from __future__ import annotations

import os
import re
from pathlib import Path


def usual_output_dir(student: str) -> str:
    """The run folder where neither a YAML file nor a setting names one.

    Args:
        student: folder or hub name of the student. Folders are called after the end of it, in
            letters that every file system takes.

    Example:
        >>> usual_output_dir("google/gemma-2-2b"), usual_output_dir("/models/my student/")
        ('runs/gemma-2-2b', 'runs/my-student')
    """
    name = os.path.basename(os.path.abspath(os.path.expanduser(student)))
    return "runs/" + (re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "run")


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
