"""Findings of the doctor, and what every finding has to hold."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from worlds import changed_config

from pad_fast.doctor.command import DoctorOptions, examine
from pad_fast.pipeline.arguments import parse_with
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.findings.finding import Finding
from pad_fast.training.config import PADConfig

PROMPTS = 8
IN_FILES = {"eos_token_id", "generation_config", "chat_template", "enable_thinking"}
SETTINGS = {field.name for kind in (RunConfig, PADConfig) for field in dataclasses.fields(kind)}


def doctor_config(world: Path, folder: Path, **changes: object) -> Path:
    """A config in ``folder`` whose responses are long enough to end."""
    return changed_config(world, folder, **{"max_new_tokens": 24, **changes})


def findings(path: Path) -> dict[str, Finding]:
    """The doctor's findings about a config, by the name of the check."""
    words = [str(path), "--num_prompts", str(PROMPTS)]
    settings, options = parse_with("doctor", words, DoctorOptions)
    return {finding.check: finding for finding in examine(settings, options.num_prompts)}


def check_verdict(finding: Finding, verdict: str, *words: str) -> None:
    """The verdict is as given, and all but "ok" has advice with ``words``.

    Whatever looks like a setting in the advice is one.
    """
    assert finding.verdict == verdict, finding
    assert bool(finding.advice) == (verdict != "ok")
    assert set(re.findall(r"[a-z]+(?:_[a-z]+)+", finding.advice)) <= SETTINGS | IN_FILES
    for word in words:
        assert word in finding.advice
