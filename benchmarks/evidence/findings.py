"""What the study shows, in words and short tables that are computed from its records.

A comparison is decided where the bootstrap interval of the paired difference is on one side of 0.
What has no record is called "not run".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.evidence.cells import STEPS, TOKENS, cells, key_of
from benchmarks.evidence.methods import BASE, METHODS, REFERENCE
from benchmarks.evidence.results import (
    Results,
    comparable,
    matrix,
    scores_of,
    share_of_tokens,
)
from benchmarks.evidence.settings import FULL, SETTINGS, SIZES, Size
from benchmarks.evidence.statistics import Estimate, Pair, interval
from benchmarks.evidence.tables import PERCENT, Table, amount, heading, title
from benchmarks.records import Record

BUDGETS = (STEPS, TOKENS)
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
    tried = sum(
        len(_composed(comparable(results, TOKENS))) * len(scores_of(results.setting))
        for results in measured
    )
    if wins:
        said = (
            f"A composed method beats {rivals} at equal compute{where} with separate 95% "
            f"intervals in {len(wins)} of {tried} comparisons: {'; '.join(wins)}."
        )
    else:
        said = (
            f"No composed method beats {'both ' if answers else ''}{rivals} at equal "
            f"compute{where} with separate 95% intervals in any of {tried} comparisons."
        )
    shares = "in brackets the least share of those tokens that a composed method reads"
    return f"**{said}** Measured, {shares}: {'; '.join(map(_as_measured, measured))}."


def _as_measured(results: Results) -> str:
    """A setting's title, and the least share of equal tokens that a composed method reads in it."""
    shares = [share_of_tokens(results, name) for name in _composed(comparable(results, TOKENS))]
    least = min((share for share in shares if share is not None), default=1.0)
    return f"{results.setting.title} ({100 * min(1, least):.0f}%)"


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
    names = [name for name in results.names if not METHODS[name].is_bound]
    done = sum(name in names for name in comparable(results, STEPS))
    return "" if done == len(names) else f" – {done} of {len(names)} methods so far"


def asides(records: Sequence[Record]) -> str:
    """What the composed methods' likelihood is of, and what the bound reaches, in words."""
    weights, bounds = [], []
    for results in studied(records):
        where = results.setting.title
        found = [
            record["answer_weight"]
            for name in results.names
            for record in results.of(name, STEPS).values()
            if record.get("answer_weight") is not None
        ]
        if found:
            weights.append(f"{sum(found) / len(found):.2f} ({where})")
        for name in (name for name in results.names if METHODS[name].is_bound):
            values = {m: matrix(results.of(name, STEPS), m) for m in scores_of(results.setting)}
            texts = [
                f"{heading(results.setting, measure)} {amount(measure, interval(runs))}"
                for measure, runs in values.items()
                if runs is not None
            ]
            bounds += [f"{title(name)}, {where}: {', '.join(texts)}."] if texts else []
    said = []
    if weights:
        said.append(
            "In the composed methods with the teacher's answer, that answer has this share of the "
            f"weighted likelihood: {', '.join(weights)}. Where it is near 1, they are SeqKD that "
            "reads the samples too."
        )
    if bounds:
        said.append(
            "With the teacher's logits and one tokenizer there is a bound for the others at equal "
            f"steps: {' '.join(bounds)}"
        )
    return "\n\n".join(said) or f"*{NOT_RUN.capitalize()}.*"


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
                    f"{amount(measure, known[name])} against {amount(measure, top)}"
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
        texts.append(text + _sharper_start(results, budget, measure, estimate))
    return "<br>".join(texts) or NOT_RUN


def _sharper_start(results: Results, budget: str, measure: str, leader: Estimate) -> str:
    """The untrained student at its best lower temperature, where its samples are as good."""
    if not measure.startswith("sampled"):
        return ""
    runs = comparable(results, budget)
    pairs: set[Pair] = set(next(iter(runs.values())))
    found = {}
    for temperature in results.size.temperatures:
        starts = results.of(BASE, STEPS, temperature)
        values = matrix({pair: starts[pair] for pair in starts if pair in pairs}, measure)
        if values is not None and set(values.pairs) == pairs:
            found[temperature] = interval(values)
    if not found:
        return ""
    best_one = max(found, key=lambda temperature: found[temperature].mean)
    if found[best_one].mean < leader.mean:
        return ""
    return f"; the untrained start at T {best_one:g} has {_mean(measure, found[best_one])}"


def _mean(measure: str, found: Estimate) -> str:
    return f"{100 * found.mean:.1f}" if measure in PERCENT else f"{found.mean:.2f}"
