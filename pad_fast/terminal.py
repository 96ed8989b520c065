"""Text on the user's terminal: characters that it lacks, markup, and commands to copy."""

from __future__ import annotations

import codecs
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pad_fast.secret_values import is_secret

if TYPE_CHECKING:
    from rich.console import Console

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
