"""The study's tables, from its records alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.evidence.cells import STEPS, TOKENS
from benchmarks.evidence.measures import MEASURES
from benchmarks.evidence.methods import BASE, METHODS
from benchmarks.evidence.results import (
    Results,
    common,
    matrix,
    scores_of,
    share_of_tokens,
)
from benchmarks.evidence.settings import SETTINGS, Setting, Size
from benchmarks.evidence.statistics import Estimate, Pair, interval, win_rate
from benchmarks.records import Record

ANSWERS = ("greedy_right", "sampled_right", "pass", "distinct_right", "distinct")
PERCENT = ("greedy_right", "sampled_right", "pass")
OTHERS = tuple(name for name in MEASURES if name not in ANSWERS)
# Log-probabilities are kept to 0.01 nats: two that round to neighbours may be equal.
TIES = {"right": 1e-4, "teacher": 0.015}
NEAR = (
    0.1  # a start's entropy is that of a method's samples where they differ by this share or less
)
ALL = 0.98  # shares from here on are not worth a remark

Table = list[list[str]]


def report(size: Size, records: Sequence[Record], with_examples: bool = True) -> str:
    """All tables of which there are records, as Markdown.

    Args:
        size: of the study.
        records: all of them.
        with_examples: whether answers of each method follow a setting's tables.
    """
    parts: list[str] = []
    for name in size.settings:
        results = Results(size, SETTINGS[name], records)
        if not results.methods(STEPS):
            continue
        parts.append(f"## {results.setting.title}")
        for budget in (STEPS, TOKENS):
            parts += [
                f"### Equal {budget}",
                shown(measured(results, budget, ANSWERS, costs=True)),
                shown(measured(results, budget, OTHERS)),
                shown(compared(results, budget, "greedy")),
                shown(compared(results, budget, "sampled")),
                shown(controls(results, budget)),
            ]
        parts += [at_the_edge(results), what_was_read(results)]
        if with_examples:
            parts.append(examples(results))
    return "\n\n".join(filter(None, parts))


def examples(results: Results) -> str:
    """Held-out prompts with every method's greedy answer, where the records have them."""
    found: dict[str, list[str]] = {}
    for method in results.methods(STEPS):
        for record in results.of(method, STEPS).values():
            for example in record.get("examples", []):
                lines = found.setdefault(example["prompt"], [])
                lines.append(f"- **{title(method)}**: {' '.join(example['answer'].split())}")
    return "\n\n".join(
        f"> {' '.join(prompt.split())}\n\n" + "\n".join(lines) for prompt, lines in found.items()
    )


def measured(results: Results, budget: str, measures: Sequence[str], costs: bool = False) -> Table:
    """A row for each method: means over runs and prompts, some with their interval of 95%."""
    head = ["", "runs", *(heading(results.setting, name) for name in measures)]
    head += ["lr", "beta", "steps", "tokens read"] if costs else []
    rows = [head]
    for method in results.methods(budget):
        found = results.of(method, budget)
        row = [title(method), str(len(found))]
        row += [_measured(found, name, name in scores_of(results.setting)) for name in measures]
        if costs:
            one = next(iter(found.values()))  # all runs have what was chosen in the first
            row += [_number(one.get(key)) for key in ("learning_rate", "beta")]
            row += [_number(_mean(found, key)) for key in ("steps", "tokens")]
        rows.append(row)
    return rows


def at_the_edge(results: Results) -> str:
    """The methods whose chosen learning rate is the least or the greatest of the grid, in words."""
    rates = (min(results.size.learning_rates), max(results.size.learning_rates))
    found = []
    for method in results.methods(STEPS):
        chosen = {record.get("learning_rate") for record in results.of(method, STEPS).values()}
        found += [f"{title(method)} ({rate:g})" for rate in rates if rate in chosen]
    if not found:
        return ""
    return (
        "Learning rates were chosen at equal steps. At an end of the grid, beyond which a better "
        f"one may lie: {', '.join(found)}."
    )


def what_was_read(results: Results) -> str:
    """What trainings read, where that is not the whole of what one would think, in words."""
    found: dict[str, list[str]] = {}
    for name in results.names:
        runs = results.of(name, STEPS)
        tokens, prompts = share_of_tokens(results, name), _mean(runs, "prompts_read")
        if tokens is not None and abs(1 - tokens) > 1 - ALL:
            text = f"{title(name)} {100 * tokens:.0f}%"
            found.setdefault("At equal tokens, read of that number of tokens", []).append(text)
        if prompts is not None and prompts < ALL:
            text = f"{title(name)} {100 * prompts:.0f}%"
            why = "Prompts that are trained on, the responses of the others being all equal"
            found.setdefault(why, []).append(text)
        if (weight := _mean(runs, "answer_weight")) is not None:
            text = f"{title(name)} {weight:.3f}"
            found.setdefault("Mean weight of the teacher's answer", []).append(text)
    return " ".join(f"{what}: {', '.join(texts)}." for what, texts in found.items())


def compared(results: Results, budget: str, answers: str) -> Table:
    """Paired win rates against the reference, by the checker and the teacher.

    Args:
        results: of a setting.
        budget: "steps" or "tokens".
        answers: "greedy", or "sampled" for the means of a prompt's samples.
    """
    reference = results.reference
    against = results.of(reference, budget)
    what = "greedy answers" if answers == "greedy" else "means of samples"
    rows = [
        [
            f"{what} against {title(reference)}",
            "checker: win / tie / loss %",
            "lead [95%]",
            "teacher: win / tie / loss %",
            "lead [95%]",
        ]
    ]
    for method in results.methods(budget):
        pairs = common(results.of(method, budget), against)
        if method == reference or not pairs[0]:
            continue
        row = [title(method)]
        for judge, tie in TIES.items():
            first, second = (matrix(part, f"{answers}_{judge}") for part in pairs)
            if first is None or second is None:
                row += ["–", "–"]
                continue
            found = win_rate(first, second, tie)
            shares = (found.win, found.tie, found.loss)
            row.append(" / ".join(f"{100 * share:.0f}" for share in shares))
            row.append(percent(found.lead))
        rows.append(row)
    return rows if len(rows) > 1 else []


def controls(results: Results, budget: str) -> Table:
    """Each method's samples against those of the start at the temperature of the same entropy.

    A run's temperature is the one, of those at which the start was sampled, whose mean entropy is
    nearest to the method's in that run. Where it is not near, there is nothing to compare. A
    setting whose start was sampled once has no such table.
    """
    if not results.setting.controls:
        return []
    rows = [
        [
            "against the start at the entropy of its samples",
            "T",
            "entropy, start's",
            f"{heading(results.setting, 'sampled_right')}: more than the start [95%]",
            "teacher logp: more than the start [95%]",
        ]
    ]
    for method in results.methods(budget):
        found, starts = common(results.of(method, budget), _matched(results, method, budget))
        if method == BASE or not found:
            continue
        temperatures = [record["cell"]["temperature"] for record in starts.values()]
        entropies = [
            np.mean([record["means"]["entropy"] for record in part.values()])
            for part in (found, starts)
        ]
        row = [title(method), f"{np.mean(temperatures):.2g}"]
        row.append(f"{entropies[0]:.2f}, {entropies[1]:.2f}")
        near = abs(entropies[0] - entropies[1]) <= NEAR * entropies[0]
        for name in ("sampled_right", "sampled_teacher"):
            first, second = (matrix(part, name) for part in (found, starts))
            if first is None or second is None or not near:
                row.append("–")
            else:
                row.append(amount(name, interval(first - second)))
        rows.append(row)
    return rows if len(rows) > 1 else []


def _matched(results: Results, method: str, budget: str) -> dict[Pair, Record]:
    """For each run the record of the start whose entropy is nearest to the method's."""
    starts = [results.of(BASE, STEPS, temperature) for temperature in results.size.temperatures]
    chosen = {}
    for pair, record in results.of(method, budget).items():
        entropy = record["means"]["entropy"]
        known = [start[pair] for start in starts if pair in start]
        if known:
            chosen[pair] = min(known, key=lambda start: abs(start["means"]["entropy"] - entropy))
    return chosen


def shown(table: Iterable[Sequence[str]], align: str = "right") -> str:
    """A table as Markdown, its columns of figures or texts aligned; nothing for an empty one."""
    rows = [list(row) for row in table]
    if not rows:
        return ""
    rule = "---:" if align == "right" else "---"
    rows.insert(1, ["---", *[rule] * (len(rows[0]) - 1)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def heading(setting: Setting, name: str) -> str:
    """A measure's heading: where answers are not right or wrong, the word for their grade."""
    if setting.world.graded != "right" and name == "pass":
        return "best of n"
    if setting.world.graded != "right" and name == "distinct_right":
        return "distinct of full marks"
    return MEASURES[name].replace("right,", f"{setting.world.graded},")


def title(method: str) -> str:
    """A method's name in tables."""
    return "start" if method == BASE else METHODS[method].title


def _measured(records: dict[Pair, Record], name: str, with_interval: bool) -> str:
    """The mean of a measure over the runs; of those that methods are judged by its interval too."""
    if with_interval:
        values = matrix(records, name)
        if values is None or np.isnan(values.values).all():
            return "–"
        return amount(name, interval(values))
    known = [record["means"].get(name) for record in records.values()]
    if any(value is None for value in known):
        return "–"
    mean = float(np.mean(known))
    return f"{100 * mean:.1f}" if name in PERCENT else f"{mean:.3f}"


def _mean(records: dict[Pair, Record], key: str) -> float | None:
    """The mean of a number that all records of the runs have; None where one lacks it."""
    values = [record.get(key) for record in records.values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def amount(measure: str, found: Estimate) -> str:
    """A measure with the ends of its interval: grades in percent, log-probabilities in nats."""
    if measure in PERCENT:
        return percent(found)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def percent(found: Estimate) -> str:
    """A share with the ends of its interval, in percent."""
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"
