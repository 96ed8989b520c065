"""The command ``pad-fast``: one table of commands, their help, and how errors are reported.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pad_fast.allocator import keep_few_products, keep_freed_memory
from pad_fast.files.system_errors import in_words
from pad_fast.interrupts import Interrupts
from pad_fast.launch import process
from pad_fast.pipeline.phases import PHASES
from pad_fast.secret_values import HideSecrets, hide_secrets
from pad_fast.terminal import HelpFormatter, suggestion, use_stand_ins

FAILED, BAD_INPUT, PROBLEM = 1, 2, 3
SIGNALLED = 128  # plus the signal's number, as a shell has it
HIDE = HideSecrets()
RECIPES = (
    "gemma-2-9b-to-2b",
    "llama-3.1-8b-to-3.2-3b",
    "smollm2-135m",
    "smollm2-prompted",
    "blank",
)
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
        takes: arguments of argparse that follow in their place; the function is given their values
            by name.
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
    takes: tuple[tuple[str, Mapping[str, Any]], ...] = ()
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


# In the order in which they are used.
MAIN_COMMANDS = (
    Command(
        "demo",
        "the whole distillation with the tiny models that come with the package",
        "pad_fast.pipeline.rounds:run_all",
        preset=(str(TINY_WORLD),),
        many=True,
    ),
    Command(
        "init",
        "write a commented CONFIG.yaml to begin with",
        "pad_fast.pipeline.starters:write_starter",
        config=False,
        takes=(
            (
                "recipe",
                {
                    "nargs": "?",
                    "default": "blank",
                    "help": f"one of {', '.join(RECIPES)} [blank]",
                },
            ),
            ("--output", {"metavar": "FILE", "help": "the file; - prints it [RECIPE.yaml]"}),
            ("--overwrite", {"action": "store_true", "help": "replace a file that is there"}),
        ),
    ),
    Command(
        "doctor",
        "try a few prompts and report what would spoil the run; leaves the run folder alone",
        "pad_fast.doctor.command:doctor",
        options="pad_fast.doctor.command:DoctorOptions",
    ),
    Command(
        "plan",
        "estimate memory and time of a run, and find settings that fit; reads no weights",
        "pad_fast.plan.command:plan",
        options="pad_fast.plan.options:PlanOptions",
    ),
    Command(
        "run",
        f"the whole distillation: in every round {', '.join(phase.name for phase in PHASES)}; "
        "then the report",
        "pad_fast.pipeline.rounds:run_all",
        many=True,
    ),
    Command(
        "report",
        "write the report on what the run has so far",
        "pad_fast.pipeline.rounds:write_report",
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
