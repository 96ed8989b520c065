"""`pad-fast plan`: the memory and time that a run will take, and which settings make it fit.

No weights are read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pad_fast.device import on_cpu
from pad_fast.files.own_files import write_json
from pad_fast.pipeline.settings import Settings
from pad_fast.plan.advice import GIB, words
from pad_fast.plan.estimate import Estimate
from pad_fast.plan.forecast import Forecast, make_forecast
from pad_fast.plan.machine import STARTED, USABLE, Machine
from pad_fast.plan.options import PlanOptions
from pad_fast.report.costs import PLAN
from pad_fast.terminal import console as plain_console
from pad_fast.terminal import show_table

LEAST = 64  # columns of a terminal in which the tables are read with ease
TRIED = (
    "Times: each kind of work was tried on this machine, on models of a few layers with random "
    "weights in the sizes of the run, and the other layers were added."
)
RATED = (
    "Times: each operation takes the longest of its products at {flops:.3g} TFLOP/s, its bytes at "
    "{bandwidth:.3g} GB/s and {started:.0f} µs to start it, measured on this machine unless given: "
    "a floor, which a real run does not reach."
)
PEAKS = "Peaks: the longest prompt with the longest responses, counted on a step without weights. "


def plan(settings: Settings, options: PlanOptions) -> bool:
    """Print the forecast of a run; the entry point of the command.

    Returns:
        Whether the run fits with its settings.

    Raises:
        ValueError: where the run itself would raise it.
    """
    said = plain_console(stderr=True).status("planning: each kind of work is tried without weights")
    with said, on_cpu(settings.on_cpu):
        forecast = make_forecast(settings, options)
    if options.keep:
        folder = Path(str(settings.run.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, as_json(forecast))
    if options.json:
        print(json.dumps(as_json(forecast), indent=2))
    else:
        print_forecast(forecast)
    return forecast.fits


def as_json(forecast: Forecast) -> dict[str, Any]:
    """The forecast for other programs; peaks in bytes, times in seconds."""
    machine, case = forecast.machine, forecast.case

    def listed(estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
        return [
            {**dataclasses.asdict(one), "fits": one.peak is None or machine.fits(one.peak)}
            for one in estimates
        ]

    return {
        "fits": forecast.fits,
        "machine": dataclasses.asdict(machine),
        "ranks": dataclasses.asdict(case.ranks),
        "models": forecast.models,
        "counts": dataclasses.asdict(case.counts),
        "prompt_lengths": {
            role: {"prompts": len(found.tokens), "mean": found.mean, "longest": found.longest}
            for role, found in case.lengths.items()
        },
        "pieces": listed(forecast.pieces),
        "training": listed(forecast.steps),
        "seconds": forecast.seconds,
        "device_hours": forecast.device_hours,
        "questions_over_scores": forecast.questions,
        "sharing_saves": forecast.saving,
        "advice": forecast.advice,
        "tried": forecast.tried,
        "notes": forecast.notes,
    }


def print_forecast(forecast: Forecast, console: Console | None = None) -> None:
    """Print the tables, the advice, and how the numbers came about."""
    console = console or plain_console()
    _print_case(forecast, console)
    show_table(console, _table(forecast.machine, "the run", forecast.pieces), LEAST)
    show_table(console, _table(forecast.machine, "a training step", forecast.steps), LEAST)
    ranks = forecast.case.ranks.number
    shared = f" on each of {ranks} processes, {forecast.device_hours:.3g} hours of devices"
    console.print(f"all of it {duration(forecast.seconds)}{shared if ranks > 1 else ''}")
    if forecast.questions is not None:
        console.print(
            f"the questions of a round take {forecast.questions:.1f} times as long as its "
            "log-probabilities"
        )
    console.print(
        f"a shared prompt costs {forecast.saving:.2f} times fewer tokens: "
        f"n(P+R)/(P+nR) at the mean prompt\n{_verdict(forecast)}\n",
    )
    machine = forecast.machine
    rates = {"flops": machine.flops / 1e12, "bandwidth": machine.bandwidth / 1e9}
    times = TRIED if forecast.tried else RATED.format(**rates, started=STARTED * 1e6)
    console.print("\n".join([PEAKS + times, *forecast.notes]), style="dim")


def _print_case(forecast: Forecast, console: Console) -> None:
    case, machine = forecast.case, forecast.machine
    for role, text in forecast.models.items():
        found = case.lengths[role]
        console.print(f"{role}  {text}")
        sizes = (
            f"{found.mean} on average, 95% up to {found.quantile(0.95)}, longest {found.longest}"
        )
        console.print(f"         prompts of {sizes} tokens ({len(found.tokens)} measured)")
    counts = case.counts
    console.print(
        f"prompts  {counts.train:,} to train on, {counts.validation:,} to choose among rounds, "
        f"{counts.heldout:,} held out"
    )
    console.print(
        f"machine  {machine.name}, {machine.memory / GIB:.1f} GiB; "
        f"of these {USABLE:.0%} are planned with"
    )
    config = case.config
    console.print(
        f"each prompt has {config.responses_per_prompt} responses of up to "
        f"{config.max_new_tokens} tokens, {case.response} for the times\n",
    )


def _verdict(forecast: Forecast) -> str:
    said = "as it is set, the run fits" if forecast.fits else "as it is set, the run does not fit"
    return "\n".join([said, *(f"→ {advice}" for advice in forecast.advice)])


def _table(machine: Machine, title: str, estimates: Sequence[Estimate]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    whole = title == "the run"
    table.add_column("")
    table.add_column("a batch")
    for heading in (*(("tokens",) if whole else ()), "peak", "time", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in estimates:
        fits = one.peak is None or machine.fits(one.peak)
        table.add_row(
            words(one.settings, "\n") or (one.title if whole else "as it is set"),
            one.batch or f"{one.count} times",
            *((f"{one.tokens:,}" if one.tokens else "",) if whole else ()),
            "–" if one.peak is None else f"{one.peak / GIB:.2f} GiB",
            "–" if one.seconds is None else duration(one.seconds),
            "yes" if fits else "no",
            style=None if fits else "yellow",
        )
    return table


def duration(seconds: float) -> str:
    """A time with up to three digits, in the largest unit that gives a number of 1 or more."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
