"""The prompts of a file or a dataset in a list, for tests that count them or look at some."""

from __future__ import annotations

from typing import Any

from pad_fast.pipeline.prompts import iter_prompts


def read_prompts(source: str, **options: str) -> list[dict[str, Any]]:
    """The rows of iter_prompts, all of them read."""
    return list(iter_prompts(source, **options))
