"""Every setting of a run in its group, with default, unit and help, as Markdown.

    python -m tools.settings_page > settings.md

The text is made from the dataclasses, from which the command line's help is made too.
"""

from __future__ import annotations

import dataclasses

from pad_fast.launch.launcher import Launch
from pad_fast.pipeline.setting_groups import TITLES, Setting, as_yaml, setting_groups
from pad_fast.pipeline.settings import MANAGED

LONGEST = 48  # characters of a default


def settings_page() -> str:
    """The page: a heading and a table for each group."""
    parts = [_section(TITLES[name], group) for name, group in setting_groups().items()]
    launch = [
        _row(field.name, _default(field.default), "", str(field.metadata["help"]))
        for field in dataclasses.fields(Launch)
    ]
    parts.append(_table("processes (flags only, no keys of the YAML file)", launch))
    managed = ", ".join(f"`{name}`" for name in sorted(MANAGED))
    parts.append(f"A run sets these arguments of `PADConfig` itself: {managed}, `local_rank`.")
    return "\n\n".join(parts) + "\n"


def _section(title: str, settings: list[Setting]) -> str:
    rows = [
        _row(setting.name, _default(setting.shown_default), setting.unit, _meaning(setting))
        for setting in settings
    ]
    return _table(title, rows)


def _table(title: str, rows: list[str]) -> str:
    head = "| setting | default | unit | meaning |\n| --- | --- | --- | --- |"
    return "\n".join([f"## {title[0].upper()}{title[1:]}\n", head, *rows])


def _row(*cells: str) -> str:
    name, *others = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| `{name}` | " + " | ".join(others) + " |"


def _meaning(setting: Setting) -> str:
    """The help, with characters that Markdown would read as its own made plain, and the range."""
    text = setting.help.replace("<", "&lt;").replace("*", "\\*")
    return f"{text} It is {setting.rule}." if setting.rule else text


def _default(value: object) -> str:
    text = value if isinstance(value, str) else "" if value is None else as_yaml(value)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return f"`{text}`" if text else "–"


if __name__ == "__main__":
    print(settings_page(), end="")
