"""Tables of the documentation site that are made from the code, so that they cannot drift.

    python -m tools.site_tables            # the names
    python -m tools.site_tables losses     # one table, as Markdown

A page has one where it says ``{made} NAME``; docs/extensions/made_tables.py puts it there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from pad_fast.commands import COMMANDS
from pad_fast.evaluation.reported_metrics import METRICS
from pad_fast.pipeline.phases import FREE, PHASES, PREPARE
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training.metrics import NAMES
from tools.settings_page import settings_page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def losses() -> str:
    """Every loss: its name, what it does, and the options that it has of its own."""
    rows = []
    for loss in LOSSES.values():
        needs = "the rewards at the start (`anchor: start`)" if loss.needs_anchor else "–"
        rows.append([f"`{loss.name}`", loss.help, needs, code(loss.own_options)])
    return table(["`loss`", "what it does", "needs", "options of its own"], rows)


def divergences() -> str:
    """Every divergence of the losses that have a choice, and how far it is exact."""
    rows = []
    for loss in LOSSES.values():
        for kind in loss.kinds if loss.divergences else ():
            bound = "none" if kind.upper_bound is None else f"{kind.upper_bound:.3f} nats"
            rows.append([f"`{kind.name}`", str(kind.auto_exact), str(kind.max_exact), bound])
    head = ["`divergence`", "exact up to n (`auto`)", "exact when asked, up to n", "largest value"]
    return table(head, rows)


def commands() -> str:
    """The commands in the order of :mod:`pad_fast.commands`."""
    rows = [[f"`pad-fast {each.usage}`", each.help] for each in COMMANDS.values()]
    return table(["command", "what it does"], rows)


def phases() -> str:
    """The phases, what each does, and the files by which it is seen to have kept something."""
    rows = [
        [f"`{phase.name}`", phase.help, ", ".join(f"`{place}`" for place in phase.kept)]
        for phase in (PREPARE, *PHASES)
    ]
    return table(["phase", "what it does", "what it keeps, in the run folder"], rows)


def entry_of_settings() -> str:
    """The phase that each of the run's settings enters, after which it may not change."""
    rows = [[f"`{phase.name}`", code(sorted(phase.settings))] for phase in (PREPARE, *PHASES)]
    rows.append(["none: may always change", code(sorted(FREE))])
    return table(["phase", "settings"], rows)


def metrics() -> str:
    """What is reported of every evaluated model."""
    better = {1: "more is better", -1: "less is better", 0: "–"}
    rows = [[each.text_heading, f"`{each.key}`", better[each.better]] for each in METRICS.values()]
    return table(["in tables", "key in `evaluation/*.json`", ""], rows)


def training_metrics() -> str:
    """The names under which a training logs."""
    return table(["logged as"], [[f"`{name}`"] for name in NAMES])


TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "divergences": divergences,
    "commands": commands,
    "phases": phases,
    "settings": settings_page,
    "entry_of_settings": entry_of_settings,
    "metrics": metrics,
    "training_metrics": training_metrics,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        print(TABLES[name]() if sys.argv[1:] else f"{name}: {TABLES[name].__doc__}")
