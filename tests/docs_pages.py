"""The documents that users read, and the pieces of code in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w{}-]*)[^\n]*\n(?P<text>.*?)^ *```$", re.M | re.S
)
COMMAND = re.compile(r"(?:^ *|`)pad-fast (?P<command>[a-z]\w*)(?P<rest>[^`\n]*)", re.M)


def blocks(path: Path, language: str) -> Iterator[tuple[int, str]]:
    """The line before each block of a language, and its text without indentation."""
    text = path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found["language"] == language:
            lines = found["text"].splitlines()
            line = text.count("\n", 0, found.start()) + 1
            yield line, "\n".join(each.removeprefix(found["indent"]) for each in lines) + "\n"


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of ``pad-fast`` in a document, and its flags, without those in quotes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for found in COMMAND.finditer(text):
        rest = re.sub(r"'[^']*'", "", found["rest"]).partition("#")[0]
        yield found["command"], re.findall(r"--([a-z][\w-]*)", rest)


def whole_commands(path: Path) -> list[list[str]]:
    """The words of each command of ``pad-fast`` in a document that is more than a mention of it."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [
        [each["command"], *shlex.split(each["rest"], comments=True)]
        for each in COMMAND.finditer(text)
    ]
    return [words for words in found if len(words) > 1 or words[0] in ("demo", "env")]


def downloads(path: Path) -> list[str]:
    """Each line of a document that downloads from the hub."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"(?:^ *|`)(hf download [^`\n]*)", text, re.M)
