"""The commands of ``pad-fast``: one table, with what each runs and what may follow it.

It names modules in place of importing them, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_fast.pipeline.phases import PHASES

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
