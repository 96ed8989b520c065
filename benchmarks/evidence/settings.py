"""The settings of the study, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.worlds import GRADED, PROMPTED, SCRATCH, SMOLLM2, TINY, World

FEW = ("rft", "ppd_kl", "best_kl", "weighted_own", "dpo")
REAL = ("seqkd", "rft", "ppd_kl", "weighted_kl", "dpo")
MAIN = (*FEW, "seqkd", "weighted", "weighted_kl", "simpo")


@dataclass(frozen=True)
class Setting:
    """Where a comparison takes place.

    Args:
        name: its name in records; its letter is that of the table of settings.
        title: what it is, in tables.
        tuned_in: the setting whose validation chose learning rate and beta.
        saturated: whether the students start from SeqKD until it no longer improves.
        answers: whether methods may read the teacher's own answers.
        width: hidden size of the base students; None for the embedded ones.
        noise: see :func:`benchmarks.evidence.methods.training_rows`.
        rounds: of sampling, scoring and training, at equal samples and steps in all.
        pool: settings of the run that samples and scores, beside those of all settings.
        methods: names; None for all that fit.
        pairs: the most pairs of a base student and a seed.
        controls: whether the start is sampled at lower temperatures too.
        shares: the setting whose cells these are too, which are not run again.
        world: of the models and prompts.
    """

    name: str
    title: str
    tuned_in: str
    saturated: bool = False
    answers: bool = True
    width: int | None = None
    noise: float = 0.0
    rounds: int = 1
    pool: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] | None = None
    pairs: int = 1
    controls: bool = True
    shares: str | None = None
    world: World = TINY

    def method_names(self) -> list[str]:
        """The methods of this setting, in the order of worth."""
        return [
            name
            for name, method in METHODS.items()
            if (self.methods is None or name in self.methods)
            and (self.answers or not (method.needs_answers or method.is_bound))
        ]


def _group(name: str, title: str, **more: Any) -> Setting:
    return Setting(
        f"g-{name}", f"g: {title}", "a", answers=False, methods=FEW, controls=False, **more
    )


# In the order of worth.
_ALL = (
    Setting("a", "a: from the base student", "a", pairs=9),
    Setting("c", "c: the teacher only scores", "a", answers=False, shares="a", pairs=9),
    Setting("e", "e: open-ended, graded", "e", world=GRADED, methods=(*MAIN, "paper"), pairs=3),
    Setting("b", "b: after 1,500 steps of SeqKD", "b", saturated=True, methods=MAIN, pairs=3),
    Setting("d", "d: a student of width 48", "d", width=48, methods=MAIN),
    Setting(
        "d-scratch",
        "d: a student of width 48, a teacher of long scratch work",
        "d-scratch",
        width=48,
        methods=MAIN,
        world=SCRATCH,
    ),
    Setting("f-1", "f: noise of one spread in the scores", "a", noise=1.0, methods=MAIN),
    Setting("f-3", "f: noise of three spreads in the scores", "a", noise=3.0, methods=MAIN),
    _group("n2", "n = 2", pool={"num_generations": 2}),
    _group("n4", "n = 4", pool={"num_generations": 4}),
    _group("n16", "n = 16", pool={"num_generations": 16}),
    _group("rounds2", "2 rounds of half the samples", rounds=2),
    _group("rounds4", "4 rounds of a quarter of the samples", rounds=4),
    _group("mcq.1", "mcq_weight 0.1", pool={"mcq_weight": 0.1}),
    _group("mcq.5", "mcq_weight 0.5", pool={"mcq_weight": 0.5}),
    _group("mcq1", "mcq_weight 1", pool={"mcq_weight": 1.0}),
    Setting(
        "prompted",
        "SmolLM2-135M taught by itself under a rule",
        "prompted",
        world=PROMPTED,
        methods=REAL,
    ),
    Setting("smollm2", "SmolLM2-135M to 22 of its layers", "smollm2", world=SMOLLM2, methods=REAL),
)
SETTINGS = {setting.name: setting for setting in _ALL}


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Args:
        name: its name in records.
        prompts, validation, heldout: numbers of prompts.
        generations: responses to a training prompt, and samples of a held-out one.
        steps, batch: of a training, in optimizer steps and prompts a step. To tune a method takes
            half of the steps.
        saturated_steps: of SeqKD in setting b.
        students, seeds: of which there is a run for each pair.
        learning_rates, betas: the grid.
        temperatures: at which the start is sampled, as the control.
        settings: names.
        methods: names; None for all.
        bf16: whether trainings compute matrix products in bfloat16 (autocast).
    """

    name: str
    prompts: int
    validation: int
    heldout: int
    generations: int
    steps: int
    batch: int
    saturated_steps: int
    students: tuple[int, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    betas: tuple[float, ...]
    temperatures: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    settings: tuple[str, ...] = tuple(s.name for s in _ALL if s.world in (TINY, GRADED, SCRATCH))
    methods: tuple[str, ...] | None = None
    bf16: bool = False

    def method_names(self, setting: Setting) -> list[str]:
        """The methods of a setting at this size."""
        names = setting.method_names()
        return [name for name in names if self.methods is None or name in self.methods]


FULL = Size(
    "full",
    prompts=3000,
    validation=200,
    heldout=600,
    generations=8,
    steps=192,
    batch=32,
    saturated_steps=1500,
    students=(1, 2, 3),
    seeds=(1, 2, 3),
    learning_rates=(3e-5, 1e-4, 3e-4, 1e-3),
    betas=(3.0, 10.0),
)
QUICK = Size(
    "quick",
    prompts=384,
    validation=100,
    heldout=150,
    generations=8,
    steps=24,
    batch=16,
    saturated_steps=200,
    students=(1,),
    seeds=(1,),
    learning_rates=(1e-4, 3e-4),
    betas=(3.0, 10.0),
    temperatures=(1.0, 0.8, 0.6, 0.4),
    settings=("a", "c"),
)
SMALLEST = Size(
    "smallest",
    prompts=16,
    validation=8,
    heldout=8,
    generations=4,
    steps=2,
    batch=8,
    saturated_steps=2,
    students=(1,),
    seeds=(1,),
    learning_rates=(1e-4,),
    betas=(10.0,),
    temperatures=(1.0, 0.5),
    settings=("a", "c"),
    methods=("seqkd", "ppd_kl"),
)


def _real(setting: str) -> Size:
    """A real model, in about an hour of 2 cores: each training is one pass over the prompts."""
    return Size(
        setting,
        prompts=160,
        validation=24,
        heldout=72,
        generations=4,
        steps=40,
        batch=4,
        saturated_steps=0,
        students=(1,),
        seeds=(1,),
        learning_rates=(3e-5, 1e-4),
        betas=(10.0,),
        temperatures=(1.0, 0.8, 0.6, 0.4),
        settings=(setting,),
        bf16=True,
    )


SIZES = {size.name: size for size in (FULL, QUICK, SMALLEST, _real("prompted"), _real("smollm2"))}
