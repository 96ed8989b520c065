"""Bad inputs of every kind, of which tools/bad_inputs.py makes a table with the messages."""

from __future__ import annotations

from . import environment, files, folders, models, settings

CASES = (
    *settings.CASES,
    *files.CASES,
    *models.CASES,
    *folders.CASES,
    *environment.CASES,
)
