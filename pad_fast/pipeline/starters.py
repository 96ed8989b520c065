"""The command ``pad-fast init``: a commented YAML file to begin with.

A recipe holds values, and why they are what they are. What a setting is and what its default is
come from the dataclasses, so that they cannot drift.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pad_fast.files.user_files import text_lines
from pad_fast.files.writing import replacing
from pad_fast.pipeline.setting_groups import MOST_USED, TITLES, Setting, setting_groups
from pad_fast.terminal import command_line, suggestion

# The folder in an installed package, or that of a checkout.
PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
WIDTH = 100
LONGEST = 300  # letters of a help text that is written out whole
LEGEND = """# A key behind a # has the default that it shows, and each key is also a flag.
# `pad-fast run --help-all` has the others."""
KEY = re.compile(r"(\w+):")
STEPS = ("doctor", "plan", "run")
# The comments before each key of a recipe, and the lines of its value.
Entries = dict[str, tuple[list[str], list[str]]]


def write_starter(recipe: str, output: str | None = None, overwrite: bool = False) -> str:
    """Write the YAML file of a recipe.

    Args:
        recipe: the recipe's name.
        output: the file; ``-`` for none. By default NAME.yaml in the current folder, or
            config.yaml for the blank one.
        overwrite: whether a file that is there may be replaced.

    Returns:
        What to say: the next steps, or the text itself where no file is wanted.

    Raises:
        ValueError: there is no such recipe, or the file is there.
    """
    recipes = recipe_files()
    if recipe not in recipes:
        raise ValueError(
            f"recipe: must be one of {', '.join(recipes)}, got {recipe!r}"
            f"{suggestion(recipe, recipes)}"
        )
    source = "".join(line for _, line in text_lines(recipes[recipe]))
    if output == "-":
        return starter(source).rstrip("\n")
    path = Path(output or ("config.yaml" if recipe == "blank" else f"{recipe}.yaml"))
    text = starter(source.replace(f"{recipe}.yaml", path.name))
    if path.exists() and not overwrite:
        raise ValueError(
            f"output: {path} is there; give another --output, or --overwrite to replace it"
        )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    steps = [f"  {command_line(['pad-fast', step, str(path)])}" for step in STEPS]
    return "\n".join([f"wrote {path}; fill in what is yours, and then:", *steps])


def recipe_files() -> dict[str, Path]:
    """The recipes' files by name.

    Raises:
        ValueError: this installation has none.
    """
    for folder in FOLDERS:
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    raise ValueError("recipe: this installation has no recipes; install pad-fast again")


def starter(source: str) -> str:
    """A recipe with a comment on every setting, and the most used of the others as comments.

    Args:
        source: the recipe: comments at its head, then keys with comments before and behind them.
    """
    head, entries = _entries(source)
    parts = ["\n".join(filter(None, [head, LEGEND]))]
    for name, group in setting_groups().items():
        shown = [each for each in group if each.name in entries or each.name in MOST_USED]
        if shown:
            title = f"# ---- {TITLES[name]} "
            parts.append("\n".join([f"{title:-<{WIDTH - 1}}", *_lines(shown, entries)]))
    return "\n\n".join(parts) + "\n"


def _lines(
    settings: Sequence[Setting], entries: dict[str, tuple[list[str], list[str]]]
) -> list[str]:
    lines = []
    for setting in settings:
        why, given = entries.get(setting.name, ([], [f"# {setting.name}: {setting.shown_default}"]))
        text = setting.help if len(setting.help) <= LONGEST else setting.short_help
        if setting.shown_default and "Default: " not in text:
            text = f"{text} Default: {setting.shown_default}."
        wrapped = textwrap.wrap(text, WIDTH - 3, break_long_words=False)
        lines += ["", *(f"# {line}" for line in wrapped), *why, *map(str.rstrip, given)]
    return lines[1:]


def _entries(source: str) -> tuple[str, Entries]:
    """The comments at the head of a recipe, and its entries."""
    head: list[str] = []
    entries: Entries = {}
    comments: list[str] = head
    last: list[str] = []
    for line in source.splitlines():
        if found := KEY.match(line):
            last = [line]
            entries[found[1]] = ([] if comments is head else comments, last)
            comments = []
        elif line.startswith("#"):
            comments.append(line)
        elif line.strip():
            last.append(line)
    return "\n".join(head), entries
