"""The command ``pad-fast``: one table of commands, their help, and how errors are reported.

A command's module is imported only when the command is given, so that ``--help`` is quick.
"""

from __future__ import annotations

import difflib
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pad_fast.files.system_errors import in_words
from pad_fast.interrupts import Interrupts
from pad_fast.launch import process
from pad_fast.pipeline.phases import PHASES
from pad_fast.secret_values import HideSecrets, hide_secrets
from pad_fast.terminal import use_stand_ins

FAILED, BAD_INPUT, PROBLEM = 1, 2, 3
SIGNALLED = 128  # plus the signal's number, as a shell has it
HIDE = HideSecrets()
TINY_WORLD = Path(__file__).parent / "tiny_world" / "tiny.yaml"


@dataclass(frozen=True)
class Command:
    """A command of ``pad-fast``.

    Args:
        name: the word that selects it.
        help: its line in ``pad-fast --help``.
        call: what it runs, as "module:function". The function is called with the run's Settings,
            the command's options and ``arguments``, as far as the command has them. If it returns
            a text, the text is printed; if it returns False, the exit code is 3.
        config: whether CONFIG.yaml and the flags of a run follow.
        reads: what follows if the function is given the words as they are, and reads them itself.
        preset: words that are put in front of the user's.
        options: a dataclass whose fields are flags of this command alone, as "module:class".
        arguments: fixed arguments of the function.
        many: whether many processes can work on it together.
    """

    name: str
    help: str
    call: str
    config: bool = True
    reads: str = ""
    preset: tuple[str, ...] = ()
    options: str = ""
    arguments: tuple[Any, ...] = ()
    many: bool = False

    @property
    def usage(self) -> str:
        """The command with what has to follow it."""
        if self.reads:
            return f"{self.name} {self.reads}"
        return f"{self.name} CONFIG.yaml" if self.config and not self.preset else self.name


MAIN_COMMANDS = (
    Command(
        "run",
        f"the whole distillation: in every round {', '.join(phase.name for phase in PHASES)}; "
        "then the report",
        "pad_fast.pipeline.rounds:run_all",
        many=True,
    ),
    Command(
        "demo",
        "the whole distillation with the tiny models that come with the package",
        "pad_fast.pipeline.rounds:run_all",
        preset=(str(TINY_WORLD),),
        many=True,
    ),
    Command(
        "report",
        "write the report on what the run has so far",
        "pad_fast.pipeline.rounds:write_report",
    ),
    Command(
        "plan",
        "estimate memory and time of a run, and find settings that fit; reads no weights",
        "pad_fast.plan.command:plan",
        options="pad_fast.plan.command:PlanOptions",
    ),
    Command(
        "doctor",
        "try a few prompts and report what would spoil the run; leaves the run folder alone",
        "pad_fast.doctor.command:doctor",
        options="pad_fast.doctor.command:DoctorOptions",
    ),
    Command(
        "benchmark",
        "answer gsm8k, alpaca_eval, arena_hard or mt_bench with any checkpoint; check answer "
        "files, or judge two",
        "pad_fast.benchmark.command:benchmark",
        config=False,
        reads="NAME",
    ),
    Command(
        "env",
        "print versions and devices, for bug reports",
        "pad_fast.environment:describe",
        config=False,
    ),
)
PHASE_COMMANDS = tuple(
    Command(
        phase.name,
        phase.help,
        "pad_fast.pipeline.rounds:run_phase",
        arguments=(phase.name,),
        many=True,
    )
    for phase in PHASES
)
COMMANDS = {command.name: command for command in (*MAIN_COMMANDS, *PHASE_COMMANDS)}


def help_text() -> str:
    """The text of ``pad-fast --help``."""
    width = max(len(command.usage) for command in COMMANDS.values())

    def lines(commands: Sequence[Command]) -> str:
        return "\n".join(f"  {command.usage:<{width}}  {command.help}" for command in commands)

    return f"""usage: pad-fast [--traceback] COMMAND [CONFIG.yaml] [--option value ...]

Preference-Aligned Distillation of a large language model's preferences into a small one.

commands:
{lines(MAIN_COMMANDS)}

one phase of the first round that is not finished:
{lines(PHASE_COMMANDS)}

CONFIG.yaml holds flat keys. Each of them is also a flag, which overrides it: pad-fast run --help
lists them. The folder of a run that was started can take its place. A command that was stopped
resumes when it is given again.

options:
  -h, --help     print this text
  --version      print the version
  --traceback    show where an error arose, instead of one line

exit code: 0 success, 1 failure, 2 bad input, 3 if doctor found a problem or the plan does not fit,
130 after Ctrl-C, 143 after SIGTERM
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``pad-fast``; those of the process if not given.

    Returns:
        The exit code, which ``pad-fast --help`` explains.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    use_stand_ins()
    logging.getLogger("pad_fast").addFilter(HIDE)
    show_traceback = words[:1] == ["--traceback"]
    words = words[show_traceback:]
    if not words or words[0] in ("-h", "--help"):
        print(help_text(), end="")
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"pad-fast {version('pad-fast')}")
        return 0
    interrupts = Interrupts()
    try:
        with interrupts:
            return _run(words[0], words[1:])
    except (KeyboardInterrupt, Exception) as error:
        if interrupts.number is not None or isinstance(error, KeyboardInterrupt):
            if process.rank() == 0:
                resume = process.given_command(words)
                print(
                    f"\npad-fast: stopped; finished work is kept. To resume: {resume}",
                    file=sys.stderr,
                )
            return SIGNALLED + (interrupts.number or signal.SIGINT)
        if show_traceback:
            print(hide_secrets(traceback.format_exc()), end="", file=sys.stderr)
        message, code = _explain(error, process.given_command(words))
        if process.speaks(message):
            # In one piece, since other processes write to the same terminal.
            sys.stderr.write(f"pad-fast: {process.named(hide_secrets(message))}\n")
            sys.stderr.flush()
        return code


def _run(name: str, words: list[str]) -> int:
    """Run a command of the table and return its exit code."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown command {name!r}{suggestion}; pad-fast --help lists them")
    command = COMMANDS[name]
    process.check_launched(name, command.many)
    given: list[Any] = []
    if command.config or command.reads:
        import pyarrow
        from transformers.utils.logging import disable_progress_bar

        pyarrow.enable_signal_handlers(False)  # its own lose a Ctrl-C
        disable_progress_bar()  # transformers shows one for each file of weights
    if command.reads:
        given = [words]
    elif command.config:
        from pad_fast.launch.launcher import hand_over, split_launch
        from pad_fast.pipeline.arguments import parse_settings, parse_with

        launch, words = split_launch(words) if command.many else (None, words)
        whole = [name, *words]
        words = [*command.preset, *words]
        if command.options:
            given = list(parse_with(name, words, _imported(command.options)))
        else:
            given = [parse_settings(name, words)]
        if launch is not None:  # the settings are right, or the processes would all say so
            return hand_over(launch, whole)
    result = _imported(command.call)(*given, *command.arguments)
    if isinstance(result, str):
        print(result)
    return PROBLEM if result is False else 0


def _imported(place: str) -> Any:
    """The object at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _explain(error: Exception, command: str) -> tuple[str, int]:
    """A line for the user about what ended ``command``, and the exit code."""
    text = " ".join(str(error).split()) or type(error).__name__
    trouble = in_words(error)
    if trouble is not None:
        return f"{trouble}; finished work is kept, and the same command goes on: {command}", FAILED
    if isinstance(error, ValueError):
        return text, BAD_INPUT
    if process.is_left_alone(error):
        return (
            "another rank has ended, and this one cannot go on without it; its own message says "
            f"why. Finished work is kept, and the same command goes on: {command}",
            FAILED,
        )
    return f"{type(error).__name__}: {text} (pad-fast --traceback COMMAND shows where)", FAILED


if __name__ == "__main__":
    sys.exit(main())
