"""The command ``pad-fast``: its help, what a command is given, and how errors are reported.

A command's module is imported only when the command is given, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

from pad_fast.allocator import keep_few_products, keep_freed_memory
from pad_fast.commands import COMMANDS, Command
from pad_fast.files.system_errors import in_words
from pad_fast.interrupts import Interrupts
from pad_fast.launch import process
from pad_fast.pipeline.phases import PHASES
from pad_fast.secret_values import HideSecrets, hide_secrets
from pad_fast.terminal import HelpFormatter, suggestion, use_stand_ins

FAILED, BAD_INPUT, PROBLEM = 1, 2, 3
SIGNALLED = 128  # plus the signal's number, as a shell has it
HIDE = HideSecrets()
DESCRIPTION = (
    "Preference-Aligned Distillation of a large language model's preferences into a small one."
)
EPILOG = (
    f"{', '.join(phase.name for phase in PHASES)}: one phase of the first round that is not "
    "finished. CONFIG.yaml holds flat keys. Each of them is also a flag, which overrides it: "
    "pad-fast run --help has those that are used most. The folder of a run that was started can "
    "take its place. A command that was stopped resumes when it is given again. Exit code: 0 "
    "success, 1 failure, 2 bad input, 3 if doctor found a problem or the plan does not fit, 130 "
    "after Ctrl-C, 143 after SIGTERM."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def command_parser() -> argparse.ArgumentParser:
    """The parser of the first words, with a parser of its own for each command.

    What follows a command that reads a run's settings is left over for its own parser: the flags
    are made from dataclasses whose modules take seconds to import.
    """
    parser = _Parser(
        prog="pad-fast",
        usage="pad-fast COMMAND [CONFIG.yaml] [--NAME VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error arose, instead of one line"
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in COMMANDS.values():
        own = commands.add_parser(
            command.name,
            prog=f"pad-fast {command.name}",
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            formatter_class=HelpFormatter,
            add_help=not command.config and not command.reads,
            allow_abbrev=False,
        )
        for name, options in command.takes:
            own.add_argument(name, **options)
    return parser


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
    show_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    interrupts = Interrupts()
    try:
        with interrupts:
            return _run(words)
    except SystemExit as end:  # a help text was printed
        return int(end.code or 0)
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


def _run(words: list[str]) -> int:
    """Run what the words say and return the exit code."""
    parser = command_parser()
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise ValueError(
            f"unknown command {first!r}{suggestion(first, COMMANDS)}; pad-fast --help lists them"
        )
    found, rest = parser.parse_known_args(words)
    if found.version:
        from importlib.metadata import version

        print(f"pad-fast {version('pad-fast')}")
        return 0
    if found.command is None:
        if rest:
            similar = suggestion(rest[0], ("--help", "--version", "--traceback"))
            raise ValueError(f"unknown argument {rest[0]}{similar}; pad-fast --help lists them")
        parser.print_help()
        return BAD_INPUT
    command = COMMANDS[found.command]
    if command.config or command.reads:
        return _run_on_words(command, rest)
    if rest:
        known = [f"--{name}" for name in vars(found)]
        raise ValueError(
            f"{command.name}: unknown argument {rest[0]}{suggestion(rest[0], known)}; "
            f"pad-fast {command.name} --help shows what it takes"
        )
    process.check_launched(command.name, command.many)
    own = {name.lstrip("-"): getattr(found, name.lstrip("-")) for name, _ in command.takes}
    return _exit_code(_imported(command.call)(**own))


def _run_on_words(command: Command, words: list[str]) -> int:
    """Run a command that reads a run's settings, or its words itself."""
    keep_freed_memory()
    keep_few_products()
    import pyarrow
    from transformers.utils.logging import disable_progress_bar

    from pad_fast.progress.bar import quiet_libraries

    process.check_launched(command.name, command.many)
    pyarrow.enable_signal_handlers(False)  # its own lose a Ctrl-C
    disable_progress_bar()  # transformers shows one for each file of weights
    quiet_libraries()
    if command.reads:
        return _exit_code(_imported(command.call)(words))
    from pad_fast.device import on_cpu
    from pad_fast.launch.launcher import hand_over, split_launch
    from pad_fast.pipeline.arguments import parse_settings, parse_with

    launch, words = split_launch(words) if command.many else (None, words)
    whole, words = [command.name, *words], [*command.preset, *words]
    given: list[Any]
    if command.options:
        given = [*parse_with(command.name, words, _imported(command.options), command.help)]
    else:
        given = [parse_settings(command.name, words, command.help, command.many)]
    if launch is not None:  # the settings are right, or the processes would all say so
        with on_cpu(given[0].on_cpu):
            return hand_over(launch, whole)
    call = _imported(command.call)
    leave_imports_to_themselves()
    return _exit_code(call(*given, *command.arguments))


@cache
def leave_imports_to_themselves() -> None:
    """Take what the imports made out of later garbage collections.

    A collection frees each model before the next one. It took a quarter of a second to look
    through the million objects of the imported modules, which stay anyway.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # nanobind's modules take what is never collected for leaks


def _exit_code(result: Any) -> int:
    """The exit code of a command's result, which is printed if it is a text."""
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
    if "huggingface_hub" in sys.modules:
        from pad_fast.pipeline.hub import failure

        if (words := failure(error)) is not None:
            return f"{words}. The same command goes on: {command}", FAILED
    if process.is_left_alone(error):
        return (
            "another rank has ended, and this one cannot go on without it; its own message says "
            f"why. Finished work is kept, and the same command goes on: {command}",
            FAILED,
        )
    return f"{type(error).__name__}: {text} (pad-fast --traceback COMMAND shows where)", FAILED


if __name__ == "__main__":
    sys.exit(main())
