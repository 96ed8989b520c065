"""The page's pictures: which there are, what each shows, and what is written under it."""

import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pad_fast.evaluation import model_names
from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.reported_metrics import METRICS, is_measured
from pad_fast.report import alt_texts, plots, svg, tables
from pad_fast.report.loss import LossSettings
from pad_fast.report.run_records import FixedGroup, Floats, RunRecords
from pad_fast.report.wording import worded

SHOWN_RESPONSES = 8  # bars of a picture; the tables show all


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        name: of its file.
        svg: the picture, as SVG.
        caption: what it is about.
        alt: what is seen in it, in words.
    """

    name: str
    svg: str
    caption: str
    alt: str

    @property
    def source(self) -> str:
        """The picture as a URL that holds it."""
        return "data:image/svg+xml;base64," + b64encode(self.svg.encode()).decode("ascii")


@dataclass(frozen=True)
class RoundPicture:
    """A picture of the catalogue's metrics over the rounds: those whose ``picture`` is its name.

    ``level`` is the metric whose value for the teacher and the baseline is a horizontal line.
    """

    name: str
    ylabel: str
    caption: str
    percent: bool = False
    level: str = ""


@dataclass(frozen=True)
class TrainingPicture:
    """A picture of what training logged; ``curves`` are logged names with their labels."""

    name: str
    curves: Mapping[str, str]
    ylabel: str
    caption: str


ACCURACY = RoundPicture(
    "accuracy",
    "held-out accuracy, %",
    "Held-out accuracy by the answer rule of the run, after each round. Bars: 95% intervals over "
    "prompts.",
    percent=True,
    level="greedy_accuracy",
)
AGREEMENT = RoundPicture(
    "agreement",
    "agreement with the teacher",
    "Agreement with the teacher's ranking: on the fixed groups (the base student's samples) and "
    "on each student's own. Bars: 95% intervals over prompts.",
)
REWARD = RoundPicture(
    "teacher-reward",
    "teacher's mean reward",
    "The teacher's mean reward of each student's fresh samples, after each round. Bars: 95% "
    "intervals over prompts.",
    level="teacher_reward",
)
LOSS = RoundPicture("heldout-loss", "loss", "The loss on the fixed held-out groups.")
SHARES = RoundPicture(
    "shares",
    "share of samples, %",
    "Held-out samples that repeat another of their group, and those that never ended by "
    "themselves.",
    percent=True,
)


def _training(unit: str) -> tuple[TrainingPicture, ...]:
    return (
        TrainingPicture(
            "train-loss",
            {"loss": "training loss"},
            "loss",
            "The training loss, as each round sees its own samples.",
        ),
        TrainingPicture(
            "train-agreement",
            {
                "ranking/kendall_tau": "Kendall τ",
                "ranking/top1": "top-1",
                "rewards/accuracies": "pairs",
            },
            "agreement with the teacher",
            "Agreement on the training batches: the ranking (τ), the best response (top-1), and "
            "single pairs.",
        ),
        TrainingPicture(
            "train-margins",
            {"rewards/margins": "margin"},
            unit,
            "The student's reward of the teacher's best response minus that of its worst.",
        ),
        TrainingPicture(
            "train-rewards",
            {
                "rewards/chosen": "teacher's best",
                "rewards/rejected": "teacher's worst",
                "logps/mean": "all",
            },
            f"student's reward, {unit}",
            "The student's log-probability of the responses. See below for what it means when it "
            "falls.",
        ),
    )


def sections(
    run: RunRecords, loss: LossSettings, shown: Sequence[FixedGroup]
) -> dict[str, list[Picture]]:
    """The pictures of each section of the page. ``shown`` are the groups that get one each."""
    rewarded = (
        [] if any(is_measured(row.get("greedy_accuracy")) for row in run.students) else [REWARD]
    )
    return {
        "rounds": [
            *_over_rounds(run, ACCURACY, *rewarded, AGREEMENT, LOSS),
            *_loss_histogram(run, loss),
        ],
        "training": list(_over_steps(run, loss.unit)),
        "preferences": [
            _first_places(loss, i, group, run.judge) for i, group in enumerate(shown, 1)
        ],
        "responses": [*_lengths(run), *_over_rounds(run, SHARES)],
    }


def _over_rounds(run: RunRecords, *pictures: RoundPicture) -> Iterator[Picture]:
    for picture in pictures:
        curves = _present(
            run.students,
            {
                metric.key: metric.curve_label
                for metric in METRICS.values()
                if metric.picture == picture.name
            },
        )
        if curves:
            curves = {key: worded(label, run.judge) for key, label in curves.items()}
            levels, percent = _levels(run, picture.level), picture.percent
            ylabel = worded(picture.ylabel, run.judge)
            yield Picture(
                picture.name,
                plots.round_curves(run.students, curves, ylabel, levels=levels, percent=percent),
                worded(picture.caption, run.judge, run.fixed_groups),
                alt_texts.over_rounds(run.students, curves, levels, percent=percent),
            )


def _levels(run: RunRecords, key: str) -> dict[str, tuple[float, str]]:
    """The heights and colours of a picture's horizontal lines, by their labels."""
    if not key:
        return {}
    levels = {"teacher": (run.teacher or {}, svg.TEACHER)}
    for row in run.baselines[:1]:
        name = f"{model_names.title(row['name'])}, {METRICS[key].curve_label}"
        levels[name] = (row, svg.BASELINE)
    return {
        name: (row[key], color)
        for name, (row, color) in levels.items()
        if is_measured(row.get(key))
    }


def _over_steps(run: RunRecords, unit: str) -> Iterator[Picture]:
    rows = [row for row in run.metrics if row["phase"] == "train" and row.get("step")]
    for picture in _training(unit):
        if curves := _present(rows, picture.curves):
            named = {key: worded(label, run.judge) for key, label in curves.items()}
            yield Picture(
                picture.name,
                plots.training_curves(rows, named, worded(picture.ylabel, run.judge)),
                worded(picture.caption, run.judge, run.fixed_groups),
                alt_texts.over_steps(rows, named),
            )


def _present(rows: Sequence[Row], curves: Mapping[str, str]) -> dict[str, str]:
    """The curves that have a value in some row."""
    return {
        key: label
        for key, label in curves.items()
        if any(is_measured(row.get(key)) for row in rows)
    }


def _loss_histogram(run: RunRecords, loss: LossSettings) -> Iterator[Picture]:
    before, after = run.losses
    if len(before):
        yield Picture(
            "loss-histogram",
            plots.loss_histogram(before, after, "loss of a prompt", bound=loss.bound),
            "The loss of each held-out prompt, before and after.",
            alt_texts.histogram(before, after),
        )


def _lengths(run: RunRecords) -> Iterator[Picture]:
    if run.lengths:
        caption = (
            "Lengths of the sampled responses by round: median, middle half (box), 5% to 95% "
            "(whiskers)."
        )
        boxes = plots.length_boxes(run.lengths)
        yield Picture("lengths", boxes, caption, alt_texts.boxes(run.lengths))


def _first_places(loss: LossSettings, number: int, group: FixedGroup, judge: str) -> Picture:
    live = [i for i in tables.order(group) if math.isfinite(group.teacher[i])]
    sides = {
        "teacher": (group.teacher, loss.teacher_beta),
        "before": (group.before, float(loss.beta)),
        "after": (group.after, float(loss.beta)),
    }
    found = {
        name: first_place(beta * reward[live])[:SHOWN_RESPONSES]
        for name, (reward, beta) in sides.items()
        if reward is not None
    }
    losses = [group.loss_before, group.loss_after]
    known = [tables.number(value, 3) for value in losses if math.isfinite(value)]
    caption = f"Prompt {number}" + (", loss " + " → ".join(known) if known else "") + "."
    if len(live) > SHOWN_RESPONSES:
        caption += f" The {SHOWN_RESPONSES} best of {len(live)} responses."
    bars, alt = plots.first_places(found, judge), alt_texts.first_places(found, judge)
    return Picture(f"preferences-{number}", bars, caption, alt)


def first_place(scaled: Floats) -> Floats:
    """Plackett-Luce's probability (N,) of being ranked first: softmax of beta * reward (N,)."""
    weight = np.exp(scaled - scaled.max())
    return weight / weight.sum()
