"""The study's tables, from its records alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.evidence.cells import STEPS, TEST, TOKENS
from benchmarks.evidence.measures import MEASURES
from benchmarks.evidence.methods import BASE, METHODS, REFERENCE, WHOLE_GROUP
from benchmarks.evidence.settings import SETTINGS, Setting, Size
from benchmarks.evidence.statistics import Estimate, Runs, interval, win_rate
from benchmarks.records import Record

ANSWERS = ("greedy_right", "sampled_right", "pass", "distinct_right", "distinct")
PERCENT = ("greedy_right", "sampled_right", "pass")
WITH_INTERVAL = ("greedy_right", "sampled_right")
OTHERS = tuple(name for name in MEASURES if name not in ANSWERS)
NO_ANSWERS_REFERENCE = "rft"  # what others are compared with where the teacher only scores

Pair = tuple[int, int]  # a base student and a seed
Table = list[list[str]]


@dataclass(frozen=True)
class Results:
    """The records of one setting at one size.

    Args:
        size, setting: whose.
        records: all of the study.
    """

    size: Size
    setting: Setting
    records: Sequence[Record]

    def of(self, method: str, budget: str, temperature: float = 1.0) -> dict[Pair, Record]:
        """The test records of a method by student and seed.

        A method that reads whole groups reads the equal tokens in the equal steps.
        """
        if method == BASE or METHODS[method].reads in WHOLE_GROUP:
            budget = STEPS
        return self._tests.get((method, budget, temperature), {})

    @cached_property
    def _tests(self) -> dict[tuple[str, str, float], dict[Pair, Record]]:
        """The test records of the setting, by method, budget and temperature."""
        wanted = (self.size.name, self.setting.shares or self.setting.name, TEST)
        found: dict[tuple[str, str, float], dict[Pair, Record]] = {}
        for record in self.records:
            cell = record["cell"]
            if (cell["size"], cell["setting"], cell["purpose"]) == wanted:
                key = cell["method"], cell["budget"], cell["temperature"]
                found.setdefault(key, {})[cell["student"], cell["seed"]] = record
        return found

    @property
    def names(self) -> list[str]:
        """The methods that the setting has at this size, whether they have run or not."""
        return self.size.method_names(self.setting)

    def methods(self, budget: str) -> list[str]:
        """The untrained student and the methods that have records."""
        return [name for name in (BASE, *self.names) if self.of(name, budget)]

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return REFERENCE if REFERENCE in self.names else NO_ANSWERS_REFERENCE


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
                shown(compared(results, budget)),
                shown(controls(results, budget)),
            ]
        parts.append(at_the_edge(results))
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
        row += [_measured(found, name) for name in measures]
        one = next(iter(found.values()))
        if costs:
            keys = ("learning_rate", "beta", "steps", "tokens")
            row += [_number(one.get(key)) for key in keys]
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


def compared(results: Results, budget: str) -> Table:
    """Paired win rates of greedy answers against the reference, by the checker and the teacher."""
    reference = results.reference
    against = results.of(reference, budget)
    rows = [
        [
            f"greedy answers against {title(reference)}",
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
        for name in ("greedy_right", "greedy_teacher"):
            first, second = (matrix(part, name) for part in pairs)
            if first is None or second is None:
                row += ["–", "–"]
                continue
            found = win_rate(first, second)
            shares = (found.win, found.tie, found.loss)
            row.append(" / ".join(f"{100 * share:.0f}" for share in shares))
            row.append(percent(found.lead))
        rows.append(row)
    return rows if len(rows) > 1 else []


def controls(results: Results, budget: str) -> Table:
    """Each method's samples against those of the start at the temperature of the same entropy.

    A run's temperature is the one, of those at which the start was sampled, whose mean entropy is
    nearest to the method's in that run. A setting whose start was sampled once has no such table.
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
        for name in ("sampled_right", "sampled_teacher"):
            first, second = (matrix(part, name) for part in (found, starts))
            if first is None or second is None:
                row.append("–")
                continue
            more = interval(first - second)
            row.append(percent(more) if name in PERCENT else _plain(more))
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


def common(
    first: dict[Pair, Record], second: dict[Pair, Record]
) -> tuple[dict[Pair, Record], dict[Pair, Record]]:
    """The records of the runs that both have, in the same order."""
    pairs = [pair for pair in first if pair in second]
    return {pair: first[pair] for pair in pairs}, {pair: second[pair] for pair in pairs}


def matrix(records: dict[Pair, Record], name: str) -> Runs | None:
    """A measure of some runs; None if the records lack it."""
    series = [record["prompts"].get(name) for record in records.values()]
    if not series or any(values is None for values in series):
        return None
    values = np.array([[np.nan if v is None else v for v in prompts] for prompts in series])
    return Runs(values, tuple(student for student, _ in records))


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
    return MEASURES[name].replace("right,", f"{setting.world.graded},")


def title(method: str) -> str:
    """A method's name in tables."""
    return "start" if method == BASE else METHODS[method].title


def _measured(records: dict[Pair, Record], name: str) -> str:
    """The mean of a measure over the runs; of the most important ones with an interval."""
    if name in WITH_INTERVAL:
        values = matrix(records, name)
        return "–" if values is None or np.isnan(values.values).all() else percent(interval(values))
    known = [record["means"].get(name) for record in records.values()]
    if any(value is None for value in known):
        return "–"
    mean = float(np.mean(known))
    return f"{100 * mean:.1f}" if name in PERCENT else f"{mean:.3f}"


def percent(found: Estimate) -> str:
    """A share with the ends of its interval, in percent."""
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _plain(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
