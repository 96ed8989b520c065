"""Calibration of the teacher's rewards by multiple-choice questions."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.pipeline.calibration import FORMULAS, PRESETS, preset_defaults
from pad_fast.pipeline.multiple_choice import DEFAULT_TEMPLATE, LETTERS, STYLES, choice_question
from pad_fast.pipeline.option import check_choices, option


@dataclass
class CalibrationOptions:
    """Calibration of the teacher's rewards by multiple-choice questions."""

    mcq_preset: str = option(
        "debiased",
        "Defaults of the other mcq options. debiased: the spread of rewards is that of the "
        "log-probabilities where multiple choice agrees with them, and never more; paper: the "
        "paper's formula; released: the authors' code.",
        PRESETS,
    )
    mcq_style: str = option(
        "pairwise",
        "What a multiple-choice question shows: "
        + ", ".join(f"{style.help} ({name})" for name, style in STYLES.items())
        + ".",
        STYLES,
    )
    mcq_opponents: int | None = option(
        None,
        "Number of other responses that each is compared with, even. Default: all; if n is above "
        "8, 8 in pairwise questions and 7 in listwise ones.",
    )
    mcq_formula: str | None = option(
        None,
        "How the teacher's reward r and its log selection probability l are mixed with the weight "
        "w = mcq_weight. "
        + "; ".join(f"{name}: {formula.help}" for name, formula in FORMULAS.items())
        + f". Default: {preset_defaults('mcq_formula')}.",
        FORMULAS,
    )
    mcq_weight: float | None = option(
        None,
        "Weight of the log selection probability in the teacher's reward, from 0 to 1; 0 asks "
        f"nothing. Default: {preset_defaults('mcq_weight')}.",
    )
    mcq_floor: float | None = option(
        None,
        "Smallest selection probability that enters a reward. Default: "
        f"{preset_defaults('mcq_floor')}.",
    )
    mcq_every_place: bool | None = option(
        None,
        "Ask so that every response stands in every place equally often, a pair in both orders and "
        "a list in all rotations, and average: a teacher's fondness for a place then cancels. "
        f"Default: {preset_defaults('mcq_every_place')}.",
    )
    mcq_renormalize: bool | None = option(
        None,
        "Divide by the probability of all offered letters. Default: "
        f"{preset_defaults('mcq_renormalize')}.",
    )
    mcq_template: str = option(
        DEFAULT_TEMPLATE,
        'Text of a question, with the fields {query}, {options} and, if wanted, {letters} ("A or '
        'B").',
    )

    def check_calibration(self) -> None:
        """Fill in the preset's values, and raise ValueError for a style or a text that is wrong."""
        check_choices(self, "mcq_preset")
        for name, value in PRESETS[self.mcq_preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        check_choices(self, "mcq_style", "mcq_formula")
        try:
            choice_question("", ["", ""], self.mcq_template)
        except ValueError as error:
            raise ValueError(f"mcq_{error}") from None

    def check_letters(self, letters: int) -> None:
        """Raise ValueError for questions that show more responses than there are letters."""
        if (self.mcq_opponents or 0) % 2:
            raise ValueError(f"mcq_opponents: must be an even number, got {self.mcq_opponents}")
        if letters > len(LETTERS):
            raise ValueError(
                f"mcq_style: a {self.mcq_style} question shows at most {len(LETTERS)} responses, "
                f"got one of {letters}; set mcq_every_place: true or a smaller mcq_opponents"
            )
