"""The forecast of a run: its pieces of work, what a step takes with other settings, and advice."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pad_fast.files.process_memory import resident
from pad_fast.files.stored_rows import RowFiles, Rows, column
from pad_fast.files.system_errors import first_line
from pad_fast.footprint.fakes import count_parameters
from pad_fast.pipeline.batch_sizes import builder
from pad_fast.pipeline.parquet_rows import keep_rows
from pad_fast.pipeline.preflight import check_models, check_sources, fitting, read_split
from pad_fast.pipeline.run import RunContext, validation_size
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.settings import Settings
from pad_fast.pipeline.train.adapter import check_adapter
from pad_fast.plan.advice import advise, questions_ratio
from pad_fast.plan.benchmark_notes import benchmark_notes
from pad_fast.plan.case import Case, Lengths, Ranks
from pad_fast.plan.estimate import Estimate, Estimator
from pad_fast.plan.machine import Machine, this_machine
from pad_fast.plan.options import PlanOptions
from pad_fast.plan.peaks import Peaks
from pad_fast.plan.speeds import Roofline, Speeds
from pad_fast.plan.trials import Trials
from pad_fast.plan.work import Counts


@dataclass(frozen=True)
class Forecast:
    """The estimates of a run, what they are based on, and advice.

    Attributes:
        case: what is planned.
        models: a line about each model, by its role.
        pieces: estimates of all pieces of work.
        steps: a training step with the run's settings, then with others.
        advice: settings to change.
        tried: whether the times were tried on this machine.
        notes: what could not be tried, and why; what is not planned.
    """

    case: Case
    models: dict[str, str]
    pieces: list[Estimate]
    steps: list[Estimate]
    advice: list[str]
    tried: bool
    notes: list[str]

    @property
    def machine(self) -> Machine:
        return self.case.machine

    @property
    def fits(self) -> bool:
        """Whether the run fits with its settings."""
        peaks = (piece.peak for piece in (*self.pieces, self.steps[0]))
        return all(peak is None or self.machine.fits(peak) for peak in peaks)

    @property
    def seconds(self) -> float:
        """Of the whole run on each rank, without what servers do."""
        return sum(piece.seconds or 0.0 for piece in self.pieces)

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.seconds * self.case.ranks.number / 3600

    @property
    def saving(self) -> float:
        """n(P+R)/(P+nR): the tokens of separate sequences over those with one shared prompt."""
        n, response = self.case.config.responses_per_prompt, self.case.response
        prompt = self.case.lengths["student"].mean
        return n * (prompt + response) / (prompt + n * response)

    @property
    def questions(self) -> float | None:
        """The time of a round's questions over that of its log-probabilities; None if unknown."""
        return questions_ratio(self.pieces)


def make_forecast(settings: Settings, options: PlanOptions) -> Forecast:
    """Measure the prompts and the machine, and estimate every piece of the run."""
    case = make_case(settings, options)
    peaks = Peaks(case)
    speeds: Speeds = Roofline(case, peaks)
    trials, notes = Trials(case) if options.here else None, benchmark_notes(case.config)
    if trials is not None:
        speeds = Fallback(trials, speeds, notes)
    estimator = Estimator(case, peaks, speeds)
    try:
        pieces, step = estimator.pieces(), estimator.step()
    finally:
        if trials is not None:
            trials.close()
    # Steps with other settings are compared with one another, by the rates alone.
    rated = Estimator(case, peaks, Roofline(case, peaks, longest=True))
    scale = (step.seconds or 1.0) / (rated.step().seconds or 1.0)
    others = [
        dataclasses.replace(one, seconds=(one.seconds or 0.0) * scale)
        for one in rated.alternatives()
    ]
    grown = libraries_memory(case.machine) if trials is not None else 0
    pieces = [_with_memory(piece, grown) for piece in pieces]
    steps = [_with_memory(one, grown) for one in (step, *others)]
    advice = advise(rated, pieces, steps)
    return Forecast(case, _describe(case), pieces, steps, advice, trials is not None, notes)


def libraries_memory(machine: Machine) -> int:
    """Bytes by which libraries have grown in this process with their first work, as in a run.

    A run draws a report too, whose libraries are loaded here.
    """
    import_module("pad_fast.report.plots")
    return 0 if machine.is_gpu else max(0, (resident() or 0) - machine.process)


def _with_memory(estimate: Estimate, nbytes: int) -> Estimate:
    peak = estimate.peak
    return dataclasses.replace(estimate, peak=None if peak is None else peak + nbytes)


class Fallback:
    """Speeds that are tried, and where that fails those by a device's rates.

    Args:
        first: are tried.
        second: take their place where they raise an error.
        notes: gets a line about each failure.
    """

    def __init__(self, first: Speeds, second: Speeds, notes: list[str]) -> None:
        self.first, self.second, self.notes = first, second, notes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        tried, rated = getattr(self.first, name), getattr(self.second, name)

        def call(*arguments: Any) -> Any:
            try:
                return tried(*arguments)
            except Exception as error:  # a model of any kind, or too little memory for the trial
                note = (
                    f"{name} could not be tried, and is by the machine's rates: {first_line(error)}"
                )
                if note not in self.notes:
                    self.notes.append(note)
                return rated(*arguments)

        return call


def make_case(settings: Settings, options: PlanOptions) -> Case:
    """What is planned: prompts, machine, and whether training is under autocast."""
    run = RunContext(settings)
    check_adapter(run.config, run.student(0), quantizer=False)  # another machine may have it
    counts, lengths = _prompts(run, options.num_prompts)
    bf16 = bool(run.training.bf16 or run.training.fp16)
    if options.memory is not None and not {"bf16", "fp16", "use_cpu"} & settings.training.keys():
        bf16 = True  # the GPU that is planned for has it, though this machine may not
    longest = run.config.max_new_tokens
    response = min(options.response_length or longest, longest)
    shared = options.num_processes > 1
    ranks = Ranks(options.num_processes, shared and options.splits, shared and options.averages)
    empty = Machine("", 0, 1.0, 1.0)
    case = Case(run, counts, lengths, empty, response, bf16, ranks)
    low = torch.bfloat16 if bf16 else case.training_options.dtype
    machine = this_machine(low, options.memory, [case.dtype(role) for role in lengths])
    if options.device_tflops is not None:
        machine = dataclasses.replace(machine, flops=options.device_tflops * 1e12, others={})
    if options.device_bandwidth is not None:
        machine = dataclasses.replace(machine, bandwidth=options.device_bandwidth * 1e9)
    return dataclasses.replace(case, machine=machine)


def _prompts(run: RunContext, count: int) -> tuple[Counts, dict[str, Lengths]]:
    """The number of the run's prompts, and the lengths of ``count`` of them for each model."""
    config, student, judge = run.config, run.student(0), run.judge
    check_sources(config)
    check_models(config, student, judge)
    with tempfile.TemporaryDirectory(prefix="pad-fast-plan-") as folder:
        train, heldout = read_split(config, partial(keep_rows, RowFiles(Path(folder))))
        draw = random.Random(derive_seed(config.seed, "plan"))
        drawn = draw.sample(train, min(count, len(train)))
        rows = list(fitting(drawn, config, student, judge, run.training.max_length))
        counts = _counts(run.settings, train, heldout, round(len(train) * len(rows) / len(drawn)))
    if not rows:
        raise ValueError(f"prompts: every one of the {len(drawn)} that were drawn is too long")
    lengths = {"student": Lengths(tuple(len(row["prompt_ids"]) for row in rows))}
    if judge is not None:
        same = judge.reads_prompts_as(student)
        lengths[judge.role] = (
            lengths["student"]
            if same
            else Lengths(tuple(len(judge.prompt_ids(row["prompt"])) for row in rows))
        )
    return counts, lengths


def _counts(settings: Settings, train: Rows, heldout: Rows, fit: int) -> Counts:
    """The counts of a run's prompts, of which ``fit`` of those to train on are short enough."""
    config = settings.run
    answers = cache(lambda: any(column(train, "answer")))
    validation = validation_size(config, fit, answers)
    return Counts(
        train=fit - validation,
        validation=validation,
        heldout=len(heldout),
        validation_answers=validation > 0 and answers(),
        heldout_answers=any(column(heldout, "answer")),
        given=bool(config.responses),
        scored=bool(config.responses) and any(column(train, "scored")),
        heldout_given=bool(config.responses) and any(column(heldout, "given")),
        anchored=settings.has_anchor,
    )


def _describe(case: Case) -> dict[str, str]:
    found = {}
    for role in case.lengths:
        checkpoint = case.model(role)
        dtype = str(case.dtype(role)).removeprefix("torch.")
        millions = count_parameters(checkpoint.config, builder(role)) / 1e6
        found[role] = f"{checkpoint.path}: {millions:,.1f} million weights, {dtype}"
        found[role] += ", run by servers" if case.served(role) else ""
    found["student"] += f"; trained with {case.config.train_dtype} weights"
    if case.config.use_peft:
        packed = " in 4 bits" if case.config.load_in_4bit else ""
        found["student"] += f"{packed} and an adapter of rank {case.config.lora_r}"
    found["student"] += ", bf16 autocast" if case.bf16 else ""
    return found
