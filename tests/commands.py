"""Commands of ``pad-fast`` that have to fail."""

from __future__ import annotations

from pad_fast import cli


def failing(capsys, *arguments: object) -> str:
    """The one line that a command prints about bad input."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("pad-fast: ")
    assert error.count("\n") == 1
    return error
