"""What the study shows, in words and short tables that are computed from its records.

A comparison is decided where the bootstrap interval of the paired difference is on one side of 0.
What has no record is called "not run".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.evidence.cells import STEPS, TOKENS, cells, key_of
from benchmarks.evidence.methods import BASE, REFERENCE
from benchmarks.evidence.settings import FULL, SETTINGS, SIZES, Setting, Size
from benchmarks.evidence.statistics import Estimate, interval
from benchmarks.evidence.tables import (
    Pair,
    Results,
    Table,
    common,
    heading,
    matrix,
    percent,
    title,
)
from benchmarks.records import Record

BUDGETS = (STEPS, TOKENS)
SCORES = ("greedy_right", "sampled_right")
BY_TEACHER = ("greedy_teacher", "sampled_teacher")  # where no code says what is right
NOT_RUN = "not run"
# What a user has, by the setting that is like it.
HAVE = {
    "a": "a teacher that answers and scores, tasks with one right answer",
    "c": "a teacher that only scores (a reward model, an API), such tasks",
    "e": "open-ended tasks whose answers have a quality",
    "b": "a student that has learned the teacher's answers already",
    "d": "a student far smaller than the teacher",
    "d-scratch": "a student that cannot write as the teacher does",
    "f-1": "scores with noise of one spread",
    "f-3": "scores with noise of three spreads",
    "prompted": "a rule in a system prompt, to be kept without it (SmolLM2-135M)",
    "smollm2": "a smaller model cut out of the teacher (SmolLM2-135M)",
}


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


# The claims of arXiv 2502.14272, sections 4 and 5, as far as the study has a cell for them.
CLAIMS = (
    Claim("rankings teach more than pairs: DPO", "ppd_kl", "a", "dpo", "a"),
    Claim("rankings teach more than pairs: SimPO", "ppd_kl", "a", "simpo", "a"),
    Claim("rankings teach more than PRO", "ppd_kl", "a", "pro", "a"),
    Claim("preferences teach more than the teacher's answers", "ppd_kl", "a", REFERENCE, "a"),
    Claim("a distribution over rankings teaches more than one ranking", "ppd_jsd", "a", "vpd", "a"),
    Claim("more responses help: 8 against 2", "ppd_kl", "a", "ppd_kl", "g-n2"),
    Claim("more responses help: 16 against 8", "ppd_kl", "g-n16", "ppd_kl", "a"),
    Claim("calibration helps: mcq_weight 0.5 against 0", "ppd_kl", "g-mcq.5", "ppd_kl", "a"),
    Claim("later rounds help: 2 of 4 samples against 1", "ppd_kl", "g-rounds2", "ppd_kl", "g-n4"),
    Claim("later rounds help: 4 of 2 samples against 1", "ppd_kl", "g-rounds4", "ppd_kl", "g-n2"),
    Claim("later rounds help: 2 of 4 against 1 of 8", "ppd_kl", "g-rounds2", "ppd_kl", "a"),
)


def studied(records: Sequence[Record]) -> list[Results]:
    """The settings of which there are records, those of real models last."""
    found = []
    for size in _sizes():
        for name in size.settings:
            results = Results(size, SETTINGS[name], records)
            if any(name != BASE for name in results.methods(STEPS)):
                found.append(results)
    return found


def progress(records: Sequence[Record]) -> str:
    """How many cells of the study are done."""
    known = {key_of(record) for record in records}
    counts = []
    for size in _sizes():
        every = cells(size)
        done = sum(cell.key in known for cell in every)
        name = "the embedded worlds" if size is FULL else SETTINGS[size.name].title
        counts.append(f"{done} of {len(every)} cells of {name}")
    return f"Done so far: {', '.join(counts)}."


def verdict(records: Sequence[Record]) -> str:
    """Whether a composed method beats SeqKD and RFT at equal compute, with separate intervals."""
    measured = [results for results in studied(records) if _is_decided(results)]
    if not measured:
        return f"The study has not come to a composed method yet. {progress(records)}"
    kinds = [
        [results for results in measured if (REFERENCE in results.names) == answers]
        for answers in (True, False)
    ]
    return " ".join([*map(_verdict_on, filter(None, kinds)), progress(records)])


def _verdict_on(measured: Sequence[Results]) -> str:
    """The verdict on settings that have the same rivals."""
    answers = REFERENCE in measured[0].names
    rivals = "SeqKD and RFT" if answers else "RFT"
    where = "" if answers else ", where the teacher only scores,"
    wins = [text for results in measured for text in _wins(results)]
    if wins:
        said = (
            f"A composed method beats {rivals} at equal compute{where} with separate 95% "
            f"intervals, here: {'; '.join(wins)}."
        )
    else:
        said = (
            f"No composed method beats {'both ' if answers else ''}{rivals} at equal "
            f"compute{where} with separate 95% intervals in any setting that was measured."
        )
    return f"**{said}** Measured: {'; '.join(results.setting.title for results in measured)}."


def _rivals(results: Results) -> list[str]:
    """What a composed method has to beat: what of SeqKD and RFT the setting has."""
    return [name for name in (REFERENCE, "rft") if name in results.names]


def _is_decided(results: Results) -> bool:
    """Whether a composed method and all of its rivals have run at equal compute."""
    done = comparable(results, TOKENS)
    return bool(_composed(done)) and all(name in done for name in _rivals(results))


def decisions(records: Sequence[Record]) -> Table:
    """For each setting the method that is ahead at each budget, and those that may be as good."""
    rows = [["what you have", "train, at equal steps", "train, at equal tokens read"]]
    done = {results.setting.name: results for results in studied(records)}
    for name, have in HAVE.items():
        results = done.get(name)
        found = [NOT_RUN] * 2 if results is None else [_leaders(results, b) for b in BUDGETS]
        rows.append([have if results is None else have + _partly(results), *found])
    return rows


def _partly(results: Results) -> str:
    """How many of a setting's methods have run, if not all have."""
    done = sum(name in results.names for name in comparable(results, STEPS))
    return "" if done == len(results.names) else f" – {done} of {len(results.names)} methods so far"


def claims(records: Sequence[Record]) -> Table:
    """Each claim of the paper with the paired difference, at equal steps, and whether it holds."""
    rows = [["claim", "compared", "right, greedy", "right, sampled", "here"]]
    for claim in CLAIMS:
        found = [_difference(claim, name, records) for name in SCORES]
        names = f"{title(claim.method)} − {title(claim.other)}"
        if claim.method == claim.other:
            names = title(claim.method)
        rows.append([claim.text, names, *map(_shown, found), _here(found)])
    return rows


def best(results: Results, budget: str, measure: str) -> list[tuple[str, Estimate]]:
    """The method that is ahead, then those whose paired difference from it may be chance.

    Args:
        results: of a setting.
        budget: "steps" or "tokens".
        measure: of which more is better.
    """
    records = comparable(results, budget)
    values = {name: matrix(runs, measure) for name, runs in records.items()}
    known = {name: runs for name, runs in values.items() if runs is not None}
    found = {name: interval(runs) for name, runs in known.items()}
    if not found:
        return []
    first = max(found, key=lambda name: found[name].mean)
    kept = [(first, found[first])]
    for name, estimate in sorted(found.items(), key=lambda item: -item[1].mean):
        if name != first and interval(known[first] - known[name]).low <= 0:
            kept.append((name, estimate))
    return kept


def comparable(results: Results, budget: str) -> dict[str, dict[Pair, Record]]:
    """The records of the runs that all methods have which have half of the most runs or more.

    A mean over fewer runs would be one of other students, some of which are easier than others.
    """
    found = {name: results.of(name, budget) for name in results.methods(budget)}
    most = max(map(len, found.values()), default=0)
    kept = {name: runs for name, runs in found.items() if 2 * len(runs) >= most}
    shared = set.intersection(*(set(runs) for runs in kept.values())) if kept else set()
    return {
        name: {pair: record for pair, record in runs.items() if pair in shared}
        for name, runs in kept.items()
    }


def scores_of(setting: Setting) -> tuple[str, ...]:
    """The measures by which a setting's methods are judged."""
    return BY_TEACHER if setting.world.grade is None else SCORES


def _sizes() -> list[Size]:
    return [FULL, SIZES["prompted"], SIZES["smollm2"]]


def _composed(names: Iterable[str]) -> list[str]:
    return [name for name in names if "composed" in title(name)]


def _wins(results: Results) -> list[str]:
    """Each composed method that is above SeqKD and RFT with separate intervals, in words."""
    records = comparable(results, TOKENS)
    others, composed, found = _rivals(results), _composed(records), []
    for measure in scores_of(results.setting):
        known = {}
        for name in (*others, *composed):
            values = matrix(records[name], measure)
            if values is not None:
                known[name] = interval(values)
        rivals = [known[name] for name in others if name in known]
        if len(rivals) < len(others):  # nothing is won where a rival was not measured
            continue
        top = max(rivals, key=lambda rival: rival.high)
        for name in composed:
            if name in known and known[name].low > top.high:
                found.append(
                    f"{title(name)}, {results.setting.title}, {heading(results.setting, measure)} "
                    f"{_amount(measure, known[name])} against {_amount(measure, top)}"
                )
    return found


def _leaders(results: Results, budget: str) -> str:
    """Who is ahead by each measure, and behind it those that may be as good."""
    texts = []
    for measure in scores_of(results.setting):
        ranked = best(results, budget, measure)
        if not ranked:
            continue
        (first, estimate), *others = ranked
        text = f"{heading(results.setting, measure)}: **{title(first)}** {_mean(measure, estimate)}"
        if others:
            text += f" (perhaps {', '.join(title(name) for name, _ in others)})"
        texts.append(text)
    return "<br>".join(texts) or NOT_RUN


def _difference(claim: Claim, measure: str, records: Sequence[Record]) -> Estimate | None:
    """The paired difference at equal steps; None where a part has not run."""
    first, second = (
        Results(FULL, SETTINGS[setting], records).of(method, STEPS)
        for method, setting in (
            (claim.method, claim.setting),
            (claim.other, claim.other_setting),
        )
    )
    values = [matrix(part, measure) for part in common(first, second)]
    if values[0] is None or values[1] is None:
        return None
    return interval(values[0] - values[1])


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


def _shown(found: Estimate | None) -> str:
    return NOT_RUN if found is None else percent(found)


def _amount(measure: str, found: Estimate) -> str:
    if measure in SCORES:
        return percent(found)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _mean(measure: str, found: Estimate) -> str:
    return f"{100 * found.mean:.1f}" if measure in SCORES else f"{found.mean:.2f}"
