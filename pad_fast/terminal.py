"""Text on the user's terminal: characters that it lacks, markup, and commands to copy."""

from __future__ import annotations

import argparse
import codecs
import difflib
import io
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pad_fast.secret_values import is_secret

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STAND_INS = {
    "·": "-",
    "→": "->",
    "−": "-",
    "–": "-",
    "—": "-",
    "±": "+-",
    "×": "x",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}
ERRORS = "pad_fast.stand_ins"
MANY = 5  # values of a row from which on they share lines
# Where a secret flag's value comes from in a command to copy.
HUB_TOKENS = ("hub_token", "push_to_hub_token")


def use_stand_ins() -> None:
    """Let standard output and error write stand-ins for what their encoding lacks.

    All that is written passes through them: tables, progress bars, logs of other libraries.
    """
    codecs.register_error(ERRORS, _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for characters that the encoding lacks, and where it goes on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in found):  # bytes of a file's name
        return found.encode("utf-8", "surrogateescape"), error.end
    shown = (
        STAND_INS.get(letter) or letter.encode("ascii", "backslashreplace").decode()
        for letter in found
    )
    return "".join(shown), error.end


def console(**options: Any) -> Console:
    """A rich console that takes every text as it is: in "[/INST]" is no markup.

    Args:
        options: more arguments of rich's Console.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


def plain_table(headings: Iterable[str], title: str | None = None) -> Table:
    """An empty table whose rows begin with a name, under a column without a heading.

    Args:
        headings: of the columns after it, which hold numbers.
        title: above the table.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def show_table(console: Console, table: Table, least: int = 0) -> None:
    """Print a table, or a paragraph for each row where the terminal is too narrow for it.

    Args:
        console: where to.
        table: what.
        least: columns below which the text in its cells is broken too often to be read.
    """
    if console.width >= max(least, _least_width(console, table)):
        console.print(table)
        return
    from rich.padding import Padding
    from rich.text import Text

    if table.title:
        console.print(f"\n{table.title}")
    headings = [" ".join(str(column.header).split()) for column in table.columns]
    lines = zip(*(column.cells for column in table.columns), strict=True)
    for row, cells in zip(table.rows, lines, strict=True):
        first, *others = map(str, cells)
        named = [f"{name}: {cell}" for name, cell in zip(headings[1:], others, strict=True) if cell]
        text = "\n".join(named if len(named) < MANY else _filled(named, console.width - 2))
        style = row.style or ""
        console.print(Text(first, style=style))
        console.print(Padding(Text(text, style=style), (0, 0, 0, 2)))


def _filled(pieces: Sequence[str], width: int) -> list[str]:
    """Lines of pieces with commas between them, of which none is broken."""
    whole = [piece.replace(" ", "\0") for piece in pieces]
    lines = textwrap.wrap(", ".join(whole), width, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _least_width(console: Console, table: Table) -> int:
    """The fewest columns in which no word of a table and no line that stays whole is cut."""
    from rich.measure import Measurement

    everything = console.options.update(max_width=10_000)
    whole = [column for column in table.columns if column.no_wrap]
    lines = [[line for cell in column.cells for line in str(cell).splitlines()] for column in whole]
    cut = sum(
        max(map(len, found)) - max(len(word) for line in found for word in [*line.split(), ""])
        for found in lines
        if found
    )
    return Measurement.get(console, everything, table).minimum + cut


def say(text: str) -> None:
    """Print a line, which a terminal gets broken at words and a file as it is."""
    shown = console()
    shown.print(text, soft_wrap=not shown.is_terminal)


def command_line(words: Sequence[str]) -> str:
    """A command to copy, quoted for the shell.

    A secret's value is not shown: the shell reads it from the environment, the Hub's from HF_TOKEN.

    Example:
        >>> command_line(["pad-fast", "run", "my run.yaml", "--hub_token", "hf_123"])
        'pad-fast run \\'my run.yaml\\' --hub_token "$HF_TOKEN"'
    """
    return " ".join(_quoted(words))


def _quoted(words: Sequence[str]) -> Iterator[str]:
    hidden = ""
    for word in words:
        flag, equals, _ = word.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        variable = ""
        if is_secret(name):
            variable = f'"${"HF_TOKEN" if name in HUB_TOKENS else name.upper()}"'
        if hidden and not name:
            yield hidden
        elif variable and equals:
            yield f"{flag}={variable}"
        else:
            yield subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)
        hidden = "" if equals else variable


class HelpFormatter(argparse.HelpFormatter):
    """Help with one spelling of each flag, as wide as the terminal but at most 100 columns."""

    def __init__(self, prog: str, **options: Any) -> None:
        columns = min(shutil.get_terminal_size().columns, 100)
        options |= {"width": columns - 1, "max_help_position": min(28, columns // 3)}
        super().__init__(prog, **options)

    def add_argument(self, action: argparse.Action) -> None:
        """Leave out --no_x, which stands beside --x for every flag that is on by default."""
        if not any(flag.startswith("--no_") for flag in action.option_strings):
            super().add_argument(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {value}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.const is True:
            return "BOOL"
        kinds: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}
        return kinds.get(action.type, "VALUE")

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        letters = sum(map(len, (*action.option_strings[:1], *(action.choices or ()))))
        if action.metavar is None and letters > self._width // 2:
            return lambda size: ("NAME",) * size
        return super()._metavar_formatter(action, default_metavar)

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        # A table of commands needs no line that says COMMAND.
        return text.partition("\n")[2] if action.nargs == argparse.PARSER else text


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean X?``, or an empty text if no known name is similar."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
