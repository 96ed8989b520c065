"""`pad-fast plan`: the memory and time that a run will take, and which settings make it fit.

No weights are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pad_fast.files.stored_rows import RowFiles
from pad_fast.footprint.fakes import count_parameters
from pad_fast.pipeline.option import option
from pad_fast.pipeline.preflight import check_models, check_sources, fitting, read_split
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.settings import Settings
from pad_fast.pipeline.whole_files import keep_rows
from pad_fast.plan.estimate import Estimate, Estimator, Lengths, stored_dtype
from pad_fast.plan.machine import USABLE, Machine, parse_bytes, this_machine
from pad_fast.terminal import console as plain_console
from pad_fast.terminal import show_table

GIB = 2**30
LEAST = 64  # columns of a terminal in which the tables are read with ease


@dataclass
class PlanOptions:
    """The command's flags, in addition to those of the run.

    Raises:
        ValueError: a flag that is no size or no count.
    """

    num_prompts: int = option(
        2000, "Training prompts whose lengths are measured, drawn by the seed."
    )
    response_length: int | None = option(
        None, "Tokens of a typical response, for the times; default: max_new_tokens."
    )
    device_memory: str | None = option(
        None,
        "Memory of the GPU to plan for, such as 80GiB; training is then assumed to be in bf16. "
        "Default: this machine's.",
    )
    device_tflops: float | None = option(
        None,
        "TFLOP/s of its matrix products in the data type of training; default: measured here.",
    )
    device_bandwidth: float | None = option(None, "GB/s of its memory; default: measured here.")
    json: bool = option(False, "Print the plan as JSON instead of tables.")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "response_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be 1 or more, got {value}")
        for name in ("device_tflops", "device_bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: must be above 0, got {value}")
        given = self.device_memory
        self.memory = None if given is None else parse_bytes("device_memory", given)


@dataclass(frozen=True)
class Forecast:
    """The estimates of a run, what they are based on, and advice.

    Attributes:
        models: a line about each of "student" and "teacher".
        lengths: of the prompts, for each of the two.
        responses: for each prompt; tokens of the longest one and of a typical one.
        phases: estimates of the phases but training.
        training: the estimate with the run's settings, then with others.
        steps: of a round.
        advice: settings to change where the run does not fit.
    """

    machine: Machine
    models: dict[str, str]
    lengths: dict[str, Lengths]
    responses: tuple[int, int, int]
    phases: list[Estimate]
    training: list[Estimate]
    steps: int
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether the run fits with its settings."""
        return all(self.machine.fits(phase.peak) for phase in [*self.phases, self.training[0]])

    @property
    def saving(self) -> float:
        """n(P+R)/(P+nR): the tokens of separate sequences over those with one shared prompt."""
        n, _, response = self.responses
        prompt = self.lengths["student"].mean
        return n * (prompt + response) / (prompt + n * response)


def plan(settings: Settings, options: PlanOptions) -> bool:
    """Print the forecast of a run; the entry point of the command.

    Returns:
        Whether the run fits with its settings.

    Raises:
        ValueError: where the run itself would raise it.
    """
    with plain_console(stderr=True).status("planning: each step is taken without weights"):
        forecast = make_forecast(settings, options)
    if options.json:
        print(json.dumps(as_json(forecast), indent=2))
    else:
        print_forecast(forecast)
    return forecast.fits


def make_forecast(settings: Settings, options: PlanOptions) -> Forecast:
    """Measure the prompts and the machine, and estimate every phase."""
    estimator = make_estimator(settings, options)
    config, machine = estimator.config, estimator.machine
    estimates = [estimator.sample(), estimator.score(), estimator.choose()]
    phases = [phase for phase in estimates if phase is not None]
    trainings = [estimator.train(), *estimator.alternatives()]
    too_large = [phase.name for phase in phases if not machine.fits(phase.peak)]
    advice = _phase_advice(estimator, too_large)
    if not machine.fits(trainings[0].peak):
        advice.append(_training_advice(machine, trainings))
    return Forecast(
        machine,
        _describe_models(estimator),
        estimator.lengths,
        (config.num_generations, config.max_new_tokens, estimator.response),
        phases,
        trainings,
        estimator.steps,
        advice,
    )


def _describe_models(estimator: Estimator) -> dict[str, str]:
    config, found = estimator.config, {}
    for role, checkpoint in (("student", estimator.student), ("teacher", estimator.teacher)):
        dtype = str(stored_dtype(checkpoint, config.dtype)).removeprefix("torch.")
        millions = count_parameters(checkpoint.config) / 1e6
        found[role] = f"{checkpoint.path}: {millions:,.1f} million weights, {dtype}"
    found["student"] += f"; trained with {config.train_dtype} weights"
    found["student"] += ", bf16 autocast" if estimator.bf16 else ""
    return found


def make_estimator(settings: Settings, options: PlanOptions) -> Estimator:
    """The estimator of a run: prompts, machine, and whether training is under autocast."""
    for name in ("responses", "reward_model"):
        if getattr(settings.run, name):
            raise ValueError(
                f"plan: estimates runs that sample from the student and score with a teacher, got "
                f"{name}; leave it out and give prompts and a teacher to plan the training"
            )
    run = RunContext(settings)
    lengths, prompts = _lengths(run, options.num_prompts)
    bf16 = bool(run.training.bf16 or run.training.fp16)
    if options.memory is not None and not {"bf16", "fp16", "use_cpu"} & settings.training.keys():
        bf16 = True  # the GPU that is planned for has it, though this machine may not
    low = torch.bfloat16 if bf16 else getattr(torch, run.config.train_dtype)
    longest = run.config.max_new_tokens
    response = min(options.response_length or longest, longest)
    machine = this_machine(low, options.memory)
    if options.device_tflops is not None:
        machine = dataclasses.replace(machine, flops=options.device_tflops * 1e12)
    if options.device_bandwidth is not None:
        machine = dataclasses.replace(machine, bandwidth=options.device_bandwidth * 1e9)
    return Estimator(run, lengths, machine, prompts, response=response, bf16=bf16)


def _lengths(run: RunContext, count: int) -> tuple[dict[str, Lengths], int]:
    """The lengths of ``count`` prompts for both models, and the number of prompts in a round."""
    config, student, teacher = run.config, run.student(0), run.teacher
    check_sources(config)
    check_models(config, student, teacher)
    with tempfile.TemporaryDirectory(prefix="pad-fast-plan-") as folder:
        train, _ = read_split(config, partial(keep_rows, RowFiles(Path(folder))))
        draw = random.Random(derive_seed(config.seed, "plan"))
        drawn = draw.sample(train, min(count, len(train)))
    rows = list(fitting(drawn, config, student, teacher, run.training.max_length))
    if not rows:
        raise ValueError(f"prompts: every one of the {len(drawn)} that were drawn is too long")
    tokens = tuple(len(row["prompt_ids"]) for row in rows)
    if teacher.same_tokenizer(student):
        others = tokens
    else:
        others = tuple(len(teacher.prompt_ids(row["prompt"])) for row in rows)
    lengths = {"student": Lengths(tokens), "teacher": Lengths(others)}
    return lengths, config.prompts_per_round or len(train)


def _phase_advice(estimator: Estimator, too_large: Sequence[str]) -> list[str]:
    """Advice for phases that do not fit: the largest limit on tokens with which they do.

    The limit of the settings is halved until they fit.
    """
    advice: list[str] = []
    limits: dict[str, int] = {}
    for phase in too_large:
        estimate: Callable[[int], Estimate | None] = getattr(estimator, phase)

        def fits(tokens: int, estimate: Callable[[int], Estimate | None] = estimate) -> bool:
            smaller = estimate(tokens)
            return smaller is not None and estimator.machine.fits(smaller.peak)

        if not fits(1):
            advice.append(
                f"{phase}: not even a batch of one fits; lower max_new_tokens or num_generations, "
                "or take a smaller model"
            )
            continue
        # scoring and the multiple-choice questions share one setting
        name = "sample_batch_tokens" if phase == "sample" else "score_batch_tokens"
        tokens = limits.get(name, getattr(estimator.config, name))
        while not fits(tokens):
            tokens //= 2
        limits[name] = tokens
    return [*(f"set {name}: {tokens}" for name, tokens in limits.items()), *advice]


def _training_advice(machine: Machine, trainings: Sequence[Estimate]) -> str:
    """Advice for training that does not fit: the fastest of the other settings that do."""
    others = [other for other in trainings[1:] if machine.fits(other.peak)]
    if others:
        return f"set {_words(min(others, key=lambda other: other.seconds).settings)}"
    least = min(trainings, key=lambda other: other.peak)
    return (
        f"train: no setting of the above fits, the least takes {least.peak / GIB:.1f} GiB; "
        "lower max_length or max_new_tokens, set train_dtype: bfloat16 or optim: adamw_8bit, "
        "or take a smaller student"
    )


def _words(settings: dict[str, Any], separator: str = ", ") -> str:
    return separator.join(f"{name}: {str(value).lower()}" for name, value in settings.items())


def as_json(forecast: Forecast) -> dict[str, Any]:
    """The forecast for other programs; peaks in bytes, times in seconds."""
    machine = forecast.machine

    def listed(estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
        return [{**dataclasses.asdict(one), "fits": machine.fits(one.peak)} for one in estimates]

    return {
        "fits": forecast.fits,
        "machine": dataclasses.asdict(machine),
        "models": forecast.models,
        "prompt_lengths": {
            role: {"prompts": len(found.tokens), "mean": found.mean, "longest": found.longest}
            for role, found in forecast.lengths.items()
        },
        "phases": listed(forecast.phases),
        "training": listed(forecast.training),
        "steps": forecast.steps,
        "sharing_saves": forecast.saving,
        "advice": forecast.advice,
    }


def print_forecast(forecast: Forecast, console: Console | None = None) -> None:
    """Print the tables, the advice, and how the numbers came about."""
    console = console or plain_console()
    machine, (n, longest, typical) = forecast.machine, forecast.responses
    for role, text in forecast.models.items():
        found = forecast.lengths[role]
        console.print(f"{role}  {text}")
        sizes = (
            f"{found.mean} on average, 95% up to {found.quantile(0.95)}, longest {found.longest}"
        )
        count = len(found.tokens)
        console.print(f"         prompts of {sizes} tokens ({count} measured)")
    console.print(
        f"machine  {machine.name}, {machine.memory / GIB:.1f} GiB; "
        f"of these {USABLE:.0%} are planned with"
    )
    console.print(
        f"each prompt has {n} responses of up to {longest} tokens, {typical} for the times\n",
    )
    rounds = [*forecast.phases, _round_of_training(forecast)]
    show_table(console, _table(machine, "a round", rounds), LEAST)
    show_table(console, _table(machine, "a training step", forecast.training), LEAST)
    console.print(
        f"a shared prompt would cost {forecast.saving:.2f} times fewer tokens: "
        f"n(P+R)/(P+nR) at the mean prompt\n{_verdict(forecast)}\n",
    )
    console.print(
        "Peaks: the longest prompt with the longest responses, counted on a step without weights. "
        f"Times: products at the rate of a plain one ({machine.flops / 1e12:.3g} TFLOP/s), "
        f"sampled tokens at that of a copy ({machine.bandwidth / 1e9:.3g} GB/s), both measured on "
        "this machine unless given: a floor, which a real run does not reach.",
        style="dim",
    )


def _round_of_training(forecast: Forecast) -> Estimate:
    step, steps = forecast.training[0], forecast.steps
    return dataclasses.replace(
        step, seconds=step.seconds * steps, batch=f"{step.batch}, {steps} steps"
    )


def _verdict(forecast: Forecast) -> str:
    if forecast.fits:
        return "as it is set, the run fits"
    return "\n".join(
        ["as it is set, the run does not fit", *(f"→ {advice}" for advice in forecast.advice)]
    )


def _table(machine: Machine, title: str, estimates: Sequence[Estimate]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("a batch")
    for heading in ("peak", "time", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in estimates:
        fits = machine.fits(one.peak)
        table.add_row(
            _words(one.settings, "\n") or (one.name if title == "a round" else "as it is set"),
            one.batch,
            f"{one.peak / GIB:.2f} GiB",
            duration(one.seconds),
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
