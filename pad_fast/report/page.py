"""From a run folder's content to the page: tables, pictures, and the words beside them."""

import math
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pad_fast.report import plots, tables
from pad_fast.report.folder import Floats, Group, Row, Run, finite, read_run

LN2 = math.log(2.0)
SATURATED = 0.95 * LN2  # above it the Jensen-Shannon divergence has almost no gradient
SHOWN_PROMPTS = 6
SHOWN_RESPONSES = 8  # bars of a picture; the tables show all
SHOWN_SETTINGS = (
    *(
        "student",
        "teacher",
        "rounds",
        "prompts_per_round",
        "num_generations",
        "temperature",
        "loss",
        "divergence",
        "beta",
    ),
    *("teacher_beta", "mcq_weight", "mcq_style", "normalize", "learning_rate", "baseline", "seed"),
)


@dataclass(frozen=True)
class Picture:
    """A PNG and what stands under it; ``alt`` says in words what it shows."""

    name: str
    png: bytes
    caption: str

    @property
    def source(self) -> str:
        return "data:image/png;base64," + b64encode(self.png).decode("ascii")


def write(run_dir: Path) -> Path:
    """:func:`pad_fast.report.write_report`."""
    run = read_run(run_dir)
    shown = _choose(run.groups)
    pictures = {
        "rounds": list(_round_pictures(run)),
        "training": list(_training_pictures(run)),
        "preferences": [
            _preference_picture(run, number, group) for number, group in enumerate(shown, 1)
        ],
        "responses": list(_response_pictures(run)),
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        run=run,
        pictures=pictures,
        headlines=tables.headlines(run),
        table=tables.before_after(run),
        skills=tables.skills(run),
        groups=[tables.group_table(group) for group in shown],
        settings=tables.flat(
            {name: run.config[name] for name in SHOWN_SETTINGS if run.config.get(name) is not None}
        ),
        phases=tables.phases(run),
        details=tables.details(run),
        **_facts(run),
    )
    folder = run_dir / "report"
    folder.mkdir(exist_ok=True)
    for picture in (picture for section in pictures.values() for picture in section):
        _replace(folder / f"{picture.name}.png", picture.png)
    _replace(folder / "index.html", page.encode("utf-8"))
    return folder / "index.html"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _facts(run: Run) -> dict[str, Any]:
    """What the page's sentences depend on."""
    base = run.students[0] if run.students else {}
    loss, divergence = run.config.get("loss", "ppd"), run.config.get("divergence", "jsd")
    accuracy, prompts = base.get("greedy_accuracy"), base.get("num_prompts")
    planned = run.config.get("rounds")
    return {
        "loss_name": f"PPD, {divergence.upper().replace('_', ' ')}"
        if loss == "ppd"
        else loss.upper(),
        "num_prompts": prompts,
        "standard_error": 100 * math.sqrt(accuracy * (1 - accuracy) / prompts)
        if finite(accuracy) and prompts
        else None,
        "rounds_done": max(0, len(run.students) - 1),
        "rounds_planned": planned if isinstance(planned, int) else None,
        "saturated": _saturation(run),
        "has_baseline": any(row["name"] == "seqkd" for row in run.baselines),
        "num_groups": len(run.groups),
        "by_loss": bool(len(_losses(run)[0])),
        "unit": _unit(run),
        "beta": run.config.get("beta", 10.0),
        "teacher_beta": _teacher_beta(run),
    }


def _teacher_beta(run: Run) -> float:
    beta = run.config.get("teacher_beta")
    return float(run.config.get("beta", 10.0) if beta is None else beta)


def _unit(run: Run) -> str:
    return "nats" if run.config.get("normalize") == "sum" else "nats per token"


def _bound(run: Run) -> float | None:
    """The highest loss that a prompt can have: ln 2 for a Jensen-Shannon divergence that is not summed over groups."""
    config = run.config
    bounded = (
        config.get("loss", "ppd") == "ppd"
        and config.get("divergence", "jsd") == "jsd"
        and config.get("group_reduction") != "sum"
    )
    return LN2 if bounded else None


def _losses(run: Run) -> tuple[Floats, Floats]:
    """Losses before and after of the prompts that have both."""
    pairs = np.array([(group.loss_before, group.loss_after) for group in run.groups]).reshape(-1, 2)
    kept = pairs[np.isfinite(pairs).all(axis=1)]
    return kept[:, 0], kept[:, 1]


def _saturation(run: Run) -> dict[str, float] | None:
    """The share (%) of held-out prompts near the bound before and after, where it is large enough to matter."""
    before, after = _losses(run)
    if _bound(run) is None or not len(before) or (share := np.mean(before > SATURATED)) < 0.2:
        return None
    return {"before": 100 * float(share), "after": 100 * float(np.mean(after > SATURATED))}


def _present(rows: Sequence[Row], lines: Mapping[str, str]) -> dict[str, str]:
    return {key: label for key, label in lines.items() if any(finite(row.get(key)) for row in rows)}


def _round_pictures(run: Run) -> Iterator[Picture]:
    students = run.students
    accuracy = _present(students, {"greedy_accuracy": "greedy", "sampled_accuracy": "sampled"})
    agreement = _present(
        students, {"kendall_tau": "τ, fixed groups", "top1": "top-1, fixed groups"}
    )
    agreement |= _present(
        students, {"fresh_kendall_tau": "τ, fresh samples", "fresh_top1": "top-1, fresh samples"}
    )
    if accuracy:
        png = plots.round_curves(
            students,
            accuracy,
            "held-out accuracy, %",
            levels=_levels(run, "greedy_accuracy"),
            percent=True,
        )
        yield Picture("accuracy", png, "Held-out accuracy by exact match, after each round.")
    if agreement:
        png = plots.round_curves(students, agreement, "agreement with the teacher", levels={})
        text = "Agreement with the teacher's ranking: on the fixed groups (the base student's samples) and on each student's own."
        yield Picture("agreement", png, text)
    if loss := _present(students, {"ppd_loss": "held-out loss"}):
        yield Picture(
            "heldout-loss",
            plots.round_curves(students, loss, "loss", levels={}),
            "The loss on the fixed held-out groups.",
        )
    before, after = _losses(run)
    if len(before):
        png = plots.loss_histogram(before, after, "loss of a prompt", bound=_bound(run))
        yield Picture("loss-histogram", png, "The loss of each held-out prompt, before and after.")


def _levels(run: Run, key: str) -> dict[str, tuple[float, str]]:
    levels = {"teacher": (run.teacher or {}, plots.TEACHER)}
    levels |= {
        tables.label(row["name"]) + ", greedy": (row, plots.BASELINE) for row in run.baselines[:1]
    }
    return {
        label: (row[key], color) for label, (row, color) in levels.items() if finite(row.get(key))
    }


def _training_pictures(run: Run) -> Iterator[Picture]:
    rows = [row for row in run.metrics if row["phase"] == "train" and row.get("step")]
    panels = (
        (
            "train-loss",
            {"loss": "training loss"},
            "loss",
            "The training loss, as each round sees its own samples.",
        ),
        (
            "train-agreement",
            {
                "ranking/kendall_tau": "Kendall τ",
                "ranking/top1": "top-1",
                "rewards/accuracies": "pairs",
            },
            "agreement with the teacher",
            "Agreement on the training batches: the ranking (τ), the best response (top-1), and single pairs.",
        ),
        (
            "train-margins",
            {"rewards/margins": "margin"},
            _unit(run),
            "The student's reward of the teacher's best response minus that of its worst.",
        ),
        (
            "train-rewards",
            {
                "rewards/chosen": "teacher's best",
                "rewards/rejected": "teacher's worst",
                "logps/mean": "all",
            },
            f"student's reward, {_unit(run)}",
            "The student's log-probability of the responses. See below for what it means when it falls.",
        ),
    )
    for name, lines, ylabel, caption in panels:
        if kept := _present(rows, lines):
            yield Picture(name, plots.training_curves(rows, kept, ylabel), caption)


def _response_pictures(run: Run) -> Iterator[Picture]:
    if run.lengths:
        caption = "Lengths of the sampled responses by round: median, middle half (box), 5% to 95% (whiskers)."
        yield Picture("lengths", plots.length_boxes(run.lengths), caption)
    if lines := _present(
        run.students, {"duplicate_ratio": "duplicates", "clipped_ratio": "cut off at the limit"}
    ):
        png = plots.round_curves(
            run.students, lines, "share of samples, %", levels={}, percent=True
        )
        yield Picture(
            "shares",
            png,
            "Held-out samples that repeat another of their group, and those that never ended by themselves.",
        )


def _choose(groups: Sequence[Group]) -> list[Group]:
    """A few prompts spread evenly over the change of the loss, from the largest fall to the largest rise: nothing is picked by taste."""
    ranked = [group for group in groups if np.isfinite(group.teacher).sum() > 1]
    known = [group for group in ranked if math.isfinite(group.loss_after - group.loss_before)]
    ranked = sorted(known, key=lambda group: group.loss_after - group.loss_before) or ranked
    places = np.linspace(0, len(ranked) - 1, min(SHOWN_PROMPTS, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def _preference_picture(run: Run, number: int, group: Group) -> Picture:
    live = [i for i in tables.order(group) if math.isfinite(group.teacher[i])]
    beta = float(run.config.get("beta", 10.0))
    sides = {
        "teacher": (group.teacher, _teacher_beta(run)),
        "before": (group.before, beta),
        "after": (group.after, beta),
    }
    found = {
        name: _first_place(scale * reward[live])[:SHOWN_RESPONSES]
        for name, (reward, scale) in sides.items()
        if reward is not None
    }
    losses = [
        tables.number(loss, 3)
        for loss in (group.loss_before, group.loss_after)
        if math.isfinite(loss)
    ]
    change = ", loss " + " → ".join(losses) if losses else ""
    rest = (
        f" The {SHOWN_RESPONSES} best of {len(live)} responses."
        if len(live) > SHOWN_RESPONSES
        else ""
    )
    return Picture(
        f"preferences-{number}", plots.first_places(found), f"Prompt {number}{change}.{rest}"
    )


def _first_place(score: Floats) -> Floats:
    """softmax of beta * reward over the live responses: Plackett-Luce's probability of being ranked first."""
    weight = np.exp(score - score.max())
    return weight / weight.sum()
