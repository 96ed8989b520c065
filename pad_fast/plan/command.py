"""`pad-fast plan`: what a run will take of memory and time, and which settings make it fit, before it starts. No weights are read."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pad_fast.pipeline.config import Settings, option
from pad_fast.pipeline.open_run import check_models, fitting, read_split
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.plan.estimate import Estimate, Estimator, Lengths, stored_dtype
from pad_fast.plan.footprint import count_parameters
from pad_fast.plan.machine import USABLE, Machine, parse_bytes, this_machine

GIB = 2**30


@dataclass
class PlanOptions:
    """Flags of the command beside those of the run. ValueError for what is no size or no count."""

    num_prompts: int = option(
        2000, "Training prompts to measure the lengths of, drawn by the seed."
    )
    response_length: int | None = option(
        None, "Tokens of a typical response, for the times; default: max_new_tokens."
    )
    device_memory: str | None = option(
        None,
        "Memory of the machine to plan for, such as 80GiB; training is then taken to be in bf16. Default: this machine's.",
    )
    device_tflops: float | None = option(
        None, "TFLOP/s of its matrix products in the training's data type; default: measured here."
    )
    device_bandwidth: float | None = option(None, "GB/s of its memory; default: measured here.")
    json: bool = option(False, "Print the plan as JSON in place of tables.")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "response_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be 1 or more, got {value}")
        for name in ("device_tflops", "device_bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: must be above 0, got {value}")
        self.memory = (
            None if self.device_memory is None else parse_bytes("device_memory", self.device_memory)
        )


@dataclass(frozen=True)
class Plan:
    """All that is printed."""

    machine: Machine
    models: dict[str, str]
    lengths: dict[str, Lengths]
    responses: tuple[int, int, int]  # of a prompt; tokens of the longest and of the typical one
    phases: list[Estimate]
    training: list[Estimate]  # as the run is set, and otherwise
    steps: int
    advice: list[str]

    @property
    def fits(self) -> bool:
        return all(self.machine.fits(phase.peak) for phase in [*self.phases, self.training[0]])

    @property
    def saving(self) -> float:
        """n(P+R)/(P+nR): tokens of one-by-one sequences over those of one shared prompt."""
        n, _, response = self.responses
        prompt = self.lengths["student"].mean
        return n * (prompt + response) / (prompt + n * response)


def plan(settings: Settings, options: PlanOptions) -> bool:
    """Estimate and print; whether the run fits as it is set. ValueError as for a run."""
    with Console(stderr=True).status("planning: each step is taken without weights"):
        made = make_plan(settings, options)
    if options.json:
        print(json.dumps(as_json(made), indent=2))
    else:
        print_plan(made)
    return made.fits


def make_plan(settings: Settings, options: PlanOptions) -> Plan:
    """Measure the prompts and the machine, and estimate every phase."""
    estimator = make_estimator(settings, options)
    config, machine = estimator.config, estimator.machine
    asked = [estimator.sample, estimator.score, estimator.choose]
    phases = [phase for estimate in asked if (phase := estimate()) is not None]
    trainings = [estimator.train(), *estimator.alternatives()]
    models = {}
    for role, which in (("student", estimator.student), ("teacher", estimator.teacher)):
        dtype = str(stored_dtype(which, config.dtype)).removeprefix("torch.")
        models[role] = (
            f"{which.path}: {count_parameters(which.config) / 1e6:,.1f} million weights, {dtype}"
        )
    models["student"] += f"; trained with {config.train_dtype} weights" + (
        ", bf16 autocast" if estimator.bf16 else ""
    )
    advice = _phase_advice(
        estimator, [phase.name for phase in phases if not machine.fits(phase.peak)]
    )
    if not machine.fits(trainings[0].peak):
        advice.append(_training_advice(machine, trainings))
    sizes = (config.num_generations, config.max_new_tokens, estimator.response)
    return Plan(
        machine, models, estimator.lengths, sizes, phases, trainings, estimator.steps, advice
    )


def make_estimator(settings: Settings, options: PlanOptions) -> Estimator:
    """What estimates depend on: lengths of prompts, the machine, and whether training is under autocast."""
    run = RunContext(settings)
    lengths, prompts = _lengths(run, options.num_prompts)
    bf16 = bool(run.training.bf16 or run.training.fp16)
    if options.memory is not None and not {"bf16", "fp16", "use_cpu"} & settings.training.keys():
        bf16 = True  # another machine than this one, which may have none
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
    """Lengths of the prompts for both models, of `count` that are drawn, and the prompts of a round."""
    config, student, teacher = run.config, run.student(0), run.teacher
    check_models(config, student, teacher)
    train, _ = read_split(config)
    drawn = random.Random(derive_seed(config.seed, "plan")).sample(train, min(count, len(train)))
    rows = fitting(drawn, config, student, teacher, run.training.max_length)
    if not rows:
        raise ValueError(f"prompts: every one of the {len(drawn)} that were drawn is too long")
    tokens = tuple(len(row["prompt_ids"]) for row in rows)
    same = teacher.same_tokenizer(student)
    others = tokens if same else tuple(len(teacher.prompt_ids(row["prompt"])) for row in rows)
    return {
        "student": Lengths(tokens),
        "teacher": Lengths(others),
    }, config.prompts_per_round or len(train)


def _phase_advice(estimator: Estimator, unfit: Sequence[str]) -> list[str]:
    """For phases that do not fit the largest token budget, halved again and again, with which they do."""
    advice: list[str] = []
    budgets: dict[str, int] = {}
    for phase in unfit:
        estimate: Callable[[int], Estimate | None] = getattr(estimator, phase)

        def fits(budget: int, estimate: Callable[[int], Estimate | None] = estimate) -> bool:
            smaller = estimate(budget)
            return smaller is not None and estimator.machine.fits(smaller.peak)

        if not fits(1):
            advice.append(
                f"{phase}: not even a batch of one fits; lower max_new_tokens or num_generations, or take a smaller model"
            )
            continue
        name = (
            "sample_batch_tokens" if phase == "sample" else "score_batch_tokens"
        )  # the latter for two phases
        budget = budgets.get(name, getattr(estimator.config, name))
        while not fits(budget):
            budget //= 2
        budgets[name] = budget
    return [*(f"set {name}: {budget}" for name, budget in budgets.items()), *advice]


def _training_advice(machine: Machine, trainings: Sequence[Estimate]) -> str:
    """The fastest of the other settings that fit."""
    fitting = [other for other in trainings[1:] if machine.fits(other.peak)]
    if fitting:
        return f"set {_words(min(fitting, key=lambda other: other.seconds).settings)}"
    least = min(trainings, key=lambda other: other.peak)
    return (
        f"train: no setting of the above fits, the least takes {least.peak / GIB:.1f} GiB; lower max_length or max_new_tokens, set "
        "train_dtype: bfloat16 or optim: adamw_8bit, or take a smaller student"
    )


def _words(settings: dict[str, Any], separator: str = ", ") -> str:
    return separator.join(f"{name}: {str(value).lower()}" for name, value in settings.items())


def as_json(made: Plan) -> dict[str, Any]:
    """The plan for machines; peaks in bytes, times in seconds."""
    lengths = {
        role: {"prompts": len(found.tokens), "mean": found.mean, "longest": found.longest}
        for role, found in made.lengths.items()
    }
    estimates = {
        name: [{**dataclasses.asdict(one), "fits": made.machine.fits(one.peak)} for one in found]
        for name, found in (("phases", made.phases), ("training", made.training))
    }
    return {
        "fits": made.fits, "machine": dataclasses.asdict(made.machine), "models": made.models, "prompt_lengths": lengths,
        **estimates, "steps": made.steps, "sharing_saves": made.saving, "advice": made.advice,
    }  # fmt: skip


def print_plan(made: Plan, console: Console | None = None) -> None:
    """The tables, what makes the run fit, and what the numbers are."""
    console = console or Console()
    n, longest, typical = made.responses
    for role, text in made.models.items():
        found = made.lengths[role]
        console.print(f"{role}  {text}", highlight=False)
        sizes = (
            f"{found.mean} on average, 95% up to {found.quantile(0.95)}, longest {found.longest}"
        )
        console.print(
            f"         prompts of {sizes} tokens ({len(found.tokens)} measured)", highlight=False
        )
    console.print(
        f"machine  {made.machine.name}, {made.machine.memory / GIB:.1f} GiB; of these {USABLE:.0%} are planned with"
    )
    console.print(
        f"each prompt has {n} responses of up to {longest} tokens, {typical} for the times\n",
        highlight=False,
    )
    console.print(_table(made, "a round", [*made.phases, _of_a_round(made)]))
    console.print(_table(made, "a training step", made.training))
    sharing = f"a shared prompt would cost {made.saving:.2f} times fewer tokens: n(P+R)/(P+nR) at the mean prompt"
    console.print(f"{sharing}\n{_verdict(made)}\n", highlight=False)
    console.print(
        "Peaks: the longest prompt with the longest responses, counted on a step without weights. Times: products at the rate of a plain "
        f"one ({made.machine.flops / 1e12:.3g} TFLOP/s), sampled tokens at that of a copy ({made.machine.bandwidth / 1e9:.3g} GB/s), both "
        "measured on this machine unless given: a floor, which a real run does not reach.",
        style="dim",
        highlight=False,
    )


def _of_a_round(made: Plan) -> Estimate:
    first = made.training[0]
    return dataclasses.replace(
        first, seconds=first.seconds * made.steps, batch=f"{first.batch}, {made.steps} steps"
    )


def _verdict(made: Plan) -> str:
    lines = ["as it is set, the run does not fit", *(f"→ {advice}" for advice in made.advice)]
    return "as it is set, the run fits" if made.fits else "\n".join(lines)


def _table(made: Plan, title: str, estimates: Sequence[Estimate]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("a batch")
    for heading in ("peak", "time", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in estimates:
        fits = made.machine.fits(one.peak)
        name = _words(one.settings, "\n") or (one.name if title == "a round" else "as it is set")
        style = None if fits else "yellow"
        table.add_row(
            name,
            one.batch,
            f"{one.peak / GIB:.2f} GiB",
            duration(one.seconds),
            "yes" if fits else "no",
            style=style,
        )
    return table


def duration(seconds: float) -> str:
    """Three digits at most, in the largest unit that leaves one before the point."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
