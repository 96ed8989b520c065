"""The command `pad-fast`: argument parsing only; every command is a call into pad_fast.pipeline."""

from __future__ import annotations

import difflib
import errno
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

HELP = """usage: pad-fast [--traceback] COMMAND [CONFIG.yaml] [--option value ...]

Preference-Aligned Distillation of a large language model's preferences into a small one.

commands:
  run CONFIG.yaml       the whole distillation: rounds of sample, score, train, evaluate; then the report
  demo                  the same on the tiny models that come with the package
  sample CONFIG.yaml    one phase of the next unfinished round: responses of the student
  score CONFIG.yaml       the teacher's rewards of them, calibrated by multiple choice
  train CONFIG.yaml       the student on them
  evaluate CONFIG.yaml    the student on held-out prompts
  report CONFIG.yaml    the page about the run as it stands
  plan CONFIG.yaml      memory and time that the run will take, and which settings make it fit; reads no weights
  doctor CONFIG.yaml    what would spoil the run, seen in a few prompts; touches no run folder
  env                   versions and devices, for bug reports

CONFIG.yaml holds flat keys, every one of which is also a flag that overrides it: pad-fast run --help lists them.
The folder of a run that was started can stand in its place. A command that was stopped goes on when given again.

options:
  -h, --help     this text
  --version      the version
  --traceback    show where an error arose, in place of one line

exit code: 0 well, 1 a failure, 2 bad input, 3 doctor found a problem or plan that the run does not fit, 130 after Ctrl-C
"""
PHASES = ("sample", "score", "train", "evaluate")
COMMANDS = ("run", "demo", *PHASES, "report", "plan", "doctor", "env")
TINY_WORLD = Path(__file__).parent / "tiny_world" / "tiny.yaml"
BAD_INPUT, FAILED, UNWELL, INTERRUPTED = 2, 1, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code, which HELP explains."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = words[:1] == ["--traceback"]
    words = words[show_traceback:]
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"pad-fast {version('pad-fast')}")
        return 0
    try:
        return _dispatch(words[0], words[1:])
    except KeyboardInterrupt:
        print(
            f"\npad-fast: stopped; what is finished is kept. To go on: pad-fast {' '.join(words)}",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        message, code = _explain(error)
        print(f"pad-fast: {message}", file=sys.stderr)
        return code


def _dispatch(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise ValueError(
            f"unknown command {command!r}{f'; did you mean {near[0]}?' if near else ''}; pad-fast --help lists them"
        )
    if command == "env":
        from pad_fast.environment import describe

        print(describe())
        return 0
    from transformers.utils.logging import disable_progress_bar

    from pad_fast.pipeline import rounds
    from pad_fast.pipeline.arguments import parse_settings, parse_with

    disable_progress_bar()  # a bar for each file of weights; the phases have their own
    if command == "doctor":
        from pad_fast.doctor.command import DoctorOptions, doctor

        return 0 if doctor(*parse_with(command, arguments, DoctorOptions)) else UNWELL
    if command == "plan":
        from pad_fast.plan.command import PlanOptions, plan

        return 0 if plan(*parse_with(command, arguments, PlanOptions)) else UNWELL
    if command == "demo":
        arguments = [str(TINY_WORLD), *arguments]
    settings = parse_settings(command, arguments)
    if command in PHASES:
        rounds.run_phase(settings, command)
    elif command == "report":
        rounds.write_report(settings)
    else:
        rounds.run_all(settings)
    return 0


def _explain(error: Exception) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    text = " ".join(str(error).split()) or type(error).__name__
    # safetensors and torch wrap the system's error in one of their own
    if (
        getattr(error, "errno", None) == errno.ENOSPC
        or "No space left on device" in text
        or "os error 28" in text
    ):
        return (
            f"the disk is full ({text}); nothing finished is lost: free some space and give the same command again",
            FAILED,
        )
    if isinstance(error, ValueError):
        return text, BAD_INPUT
    return f"{type(error).__name__}: {text} (pad-fast --traceback COMMAND shows where)", FAILED


if __name__ == "__main__":
    sys.exit(main())
