"""The embedded world as its tests read it: prompts and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import pad_fast

WORLD = Path(pad_fast.__file__).parent / "tiny_world"
SPLITS = ("train", "validation", "heldout")


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (WORLD / f"{split}.jsonl").read_text().splitlines()]


def prompts(split: str) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows(split)]


def tokenizer_of(name: str) -> Any:
    return AutoTokenizer.from_pretrained(WORLD / name)
