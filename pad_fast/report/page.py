"""The page: chooses the prompts that are shown, fills the template and writes the files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pad_fast.evaluation import model_names
from pad_fast.evaluation.reported_metrics import is_measured
from pad_fast.files.writing import replacing
from pad_fast.preference.loss_kinds import SATURATION_SHARE
from pad_fast.report import compared, costs, pictures, tables
from pad_fast.report.loss import (
    LossSettings,
    loss_settings,
    saturated_shares,
    standard_error,
)
from pad_fast.report.run_records import FixedGroup, RunRecords, read_run
from pad_fast.report.wording import worded

SHOWN_PROMPTS = 6
SHOWN_SETTINGS = (
    "student",
    "teacher",
    "reward_model",
    "responses",
    "rounds",
    "prompts_per_round",
    "num_generations",
    "temperature",
    "loss",
    "divergence",
    "beta",
    "teacher_beta",
    "mcq_style",
    "mcq_formula",
    "mcq_weight",
    "normalize",
    "learning_rate",
    "baseline",
    "seed",
)


def write(run_dir: Path) -> Path:
    """See :func:`pad_fast.report.write_report`."""
    run = read_run(run_dir)
    loss, shown = loss_settings(run.config), choose(run.groups)
    sections = pictures.sections(run, loss, shown)
    choice = tables.choice(run)
    settings = {
        name: run.config[name]
        for name in SHOWN_SETTINGS
        if run.config.get(name) is not None and (choice or not name.startswith("mcq_"))
    }
    page = _template(run.judge, run.fixed_groups).render(
        run=run,
        pictures=sections,
        headlines=tables.headlines(run),
        table=tables.before_after(run),
        skills=tables.skills(run),
        benchmarks=tables.benchmarks(run_dir),
        validation=tables.validation(run),
        groups=[tables.group_table(group) for group in shown],
        texts=[tables.side_by_side(run, group) for group in shown],
        settings=tables.flat(settings),
        phases=tables.phases(run),
        details=tables.details(run),
        choice=choice,
        compared=compared.comparison(run_dir),
        costs=costs.section(run_dir),
        loss=loss,
        **_facts(run, loss),
    )
    folder = run_dir / "report"
    folder.mkdir(exist_ok=True)
    for picture in (picture for section in sections.values() for picture in section):
        _replace(folder / f"{picture.name}.svg", picture.svg.encode("utf-8"))
    _replace(folder / "index.html", page.encode("utf-8"))
    return folder / "index.html"


def choose(groups: Sequence[FixedGroup]) -> list[FixedGroup]:
    """A few prompts, spread evenly from the largest fall of the loss to its largest rise.

    Only prompts with two live responses or more are shown. Where no loss is known, the prompts are
    spread through the file.
    """
    ranked = [  # the rise of each group's loss, and the group's place
        (group.loss_after - group.loss_before, place)
        for place, group in enumerate(groups)
        if np.isfinite(group.teacher).sum() > 1
    ]
    ranked = sorted(each for each in ranked if math.isfinite(each[0])) or ranked
    places = np.linspace(0, len(ranked) - 1, min(SHOWN_PROMPTS, len(ranked))).round().astype(int)
    return [groups[ranked[place][1]] for place in places]


def _template(judge: str, groups: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return environment.from_string(worded(source, judge, groups))


def _facts(run: RunRecords, loss: LossSettings) -> dict[str, Any]:
    """The numbers and conditions in the page's sentences."""
    accuracy, prompts = run.base.get("greedy_accuracy"), run.base.get("num_prompts")
    planned = run.config.get("rounds")
    return {
        "num_prompts": prompts,
        "standard_error": standard_error(accuracy, prompts)
        if is_measured(accuracy) and prompts
        else None,
        "rounds_done": max(0, len(run.students) - 1),
        "rounds_planned": planned if isinstance(planned, int) else None,
        "saturated": saturated_shares(loss, run.losses),
        "saturation_share": SATURATION_SHARE,
        "has_baseline": any(row["name"] == model_names.SEQKD for row in run.baselines),
        "num_groups": len(run.groups),
        "by_loss": bool(len(run.losses[0])),
    }


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
