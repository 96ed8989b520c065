"""The claims of arXiv 2502.14272, and what the study's records say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.evidence.cells import STEPS
from benchmarks.evidence.findings import NOT_RUN
from benchmarks.evidence.methods import REFERENCE
from benchmarks.evidence.results import Results, common, matrix, scores_of
from benchmarks.evidence.settings import FULL, SETTINGS, SIZES
from benchmarks.evidence.statistics import Estimate, interval
from benchmarks.evidence.tables import Table, amount, title
from benchmarks.records import Record

# A claim about methods is looked at wherever both have run: that of the first always has a row.
EVERYWHERE = ("a", "e", "b", "d", "d-scratch", "prompted", "smollm2")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: that a method in a setting does better than another one.

    Args:
        text: the claim.
        method, setting: of what is to be better.
        other, other_setting: of what it is compared with.
    """

    text: str
    method: str
    setting: str
    other: str
    other_setting: str


def _groups(text: str, setting: str, other_setting: str) -> list[Claim]:
    return [Claim(text, "ppd_kl", setting, "ppd_kl", other_setting)]


def _methods(text: str, method: str, other: str) -> list[Claim]:
    return [Claim(text, method, name, other, name) for name in EVERYWHERE]


# Those of sections 4 and 5, as far as the study has a cell for them.
CLAIMS = (
    *_methods("rankings teach more than pairs: DPO", "ppd_kl", "dpo"),
    *_methods("the same with the paper's loss and factors", "paper", "dpo"),
    *_methods("rankings teach more than pairs: SimPO", "ppd_kl", "simpo"),
    *_methods("the same with the paper's loss and factors", "paper", "simpo"),
    *_methods("rankings teach more than PRO", "ppd_kl", "pro"),
    *_methods("preferences teach more than the teacher's answers", "ppd_kl", REFERENCE),
    *_methods("the same with the paper's loss and factors", "paper", REFERENCE),
    *_methods("a distribution over rankings teaches more than one ranking", "ppd_jsd", "vpd"),
    *_methods("the same with the paper's loss and factors", "paper", "vpd"),
    *_groups("more responses help: 8 against 2", "a", "g-n2"),
    *_groups("more responses help: 16 against 8", "g-n16", "a"),
    *_groups("calibration helps: mcq_weight 0.5 against 0", "g-mcq.5", "a"),
    *_groups("later rounds help: 2 of 4 samples against 1", "g-rounds2", "g-n4"),
    *_groups("later rounds help: 4 of 2 samples against 1", "g-rounds4", "g-n2"),
    *_groups("later rounds help: 2 of 4 against 1 of 8", "g-rounds2", "a"),
)


def claims(records: Sequence[Record]) -> Table:
    """Each claim of the paper with the paired difference, at equal steps, and whether it holds."""
    rows = [["claim", "compared", "where", "runs", "greedy", "sampled", "here"]]
    for claim in CLAIMS:
        runs, found = _differences(claim, records)
        if not runs and claim.setting == claim.other_setting != EVERYWHERE[0]:
            continue
        names = f"{title(claim.method)} − {title(claim.other)}"
        where = SETTINGS[claim.setting].title
        if claim.method == claim.other:
            names = title(claim.method)
            where += f" − {SETTINGS[claim.other_setting].title}"
        shown = [NOT_RUN if each is None else amount(name, each) for name, each in found.items()]
        rows.append([claim.text, names, where, str(runs), *shown, _here([*found.values()])])
    return rows


def _differences(claim: Claim, records: Sequence[Record]) -> tuple[int, dict[str, Estimate | None]]:
    """The runs that both have, and the paired differences at equal steps; None without runs."""
    first, second = (
        Results(SIZES.get(name, FULL), SETTINGS[name], records).of(method, STEPS)
        for method, name in (
            (claim.method, claim.setting),
            (claim.other, claim.other_setting),
        )
    )
    parts = common(first, second)
    found: dict[str, Estimate | None] = {}
    for measure in scores_of(SETTINGS[claim.setting]):
        more, less = (matrix(part, measure) for part in parts)
        found[measure] = None if more is None or less is None else interval(more - less)
    return len(parts[0]), found


def _here(found: Sequence[Estimate | None]) -> str:
    """Whether a claim holds by both measures."""
    known = [each for each in found if each is not None]
    if not known:
        return NOT_RUN
    if all(each.low > 0 for each in known):
        return "holds"
    if all(each.high < 0 for each in known):
        return "the opposite"
    if all(each.excludes_zero for each in known):
        return "one way greedy, the other way sampled"
    ends = [each for each in known if each.excludes_zero]
    if not ends:
        return "not seen"
    return "by one measure" if ends[0].low > 0 else "the opposite by one measure"
