"""Compare the answer rules with EleutherAI's lm-eval, on GSM8K's solutions and on spoiled ones.

    pip install lm-eval
    python tools/compare_answers.py gsm8k_test.jsonl     # compare; exit code 1 if they disagree
    python tools/compare_answers.py --write tests/evaluation/lm_eval_verdicts.jsonl

Filters, patterns and the metric's options come from lm-eval's task,
lm_eval/tasks/gsm8k/gsm8k.yaml. The rules may call a response right that lm-eval does not where
values are equal and texts are not, such as 18.00 and 18; any other difference is a disagreement.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pad_fast.evaluation.answers import (
    RULES,
    extract_flexible,
    extract_strict,
    number,
    without_ignored,
)

EXTRACT = {"strict-match": extract_strict, "flexible-extract": extract_flexible}
NOTHING = "[invalid]"  # what lm-eval's regex filter gives where it finds nothing

# What a model may make of a solution that ends with "#### VALUE": a text of the work before the
# mark and the value.
SPOILERS: dict[str, Callable[[str, str], str]] = {
    "as it is": lambda work, value: f"{work}#### {value}",
    "another value": lambda work, value: f"{work}#### {value}1",
    "dollars before": lambda work, value: f"{work}#### ${value}",
    "words behind": lambda work, value: f"{work}#### {value} dollars",
    "full stop": lambda work, value: f"{work}#### {value}.",
    "two full stops": lambda work, value: f"{work}#### {value}..",
    "cents": lambda work, value: f"{work}#### {value}.00",
    "one decimal": lambda work, value: f"{work}#### {value}.0",
    "half more": lambda work, value: f"{work}#### {value}.5",
    "commas": lambda work, value: f"{work}#### {_grouped(value)}",
    "misplaced comma": lambda work, value: f"{work}#### {value[0]},{value[1:]}",
    "minus": lambda work, value: f"{work}#### -{value}",
    "plus": lambda work, value: f"{work}#### +{value}",
    "percent": lambda work, value: f"{work}#### {value}%",
    "no blank": lambda work, value: f"{work}####{value}",
    "line break": lambda work, value: f"{work}####\n{value}",
    "two marks": lambda work, value: f"{work}#### {value}\n#### {value}0",
    "wrong one first": lambda work, value: f"{work}#### {value}0\n#### {value}",
    "said again": lambda work, value: f"{work}#### {value}\nThe answer is: {value}",
    "another question": lambda work, value: f"{work}#### {value}\n\nQuestion: What is 6 times 7?",
    "no mark": lambda work, value: f"{work}The answer is {value}.",
    "boxed": lambda work, value: f"{work}The result is \\boxed{{{value}}}",
    "bold": lambda work, value: f"{work}**{value}**",
    "work alone": lambda work, value: work,
    "dots": lambda work, value: f"{work}So it is {value}...",
    "leading zero": lambda work, value: f"{work}#### 0{value}",
    "nothing": lambda work, value: "",
}
# Golds of the committed record: short texts of our own, so that no data set is copied.
WORK = "6 times 7 is <<6*7=42>>42.\n"
VALUES = ("42", "7", "1234", "1,234", "0", "18.5", "-3")


@dataclass(frozen=True)
class Case:
    """A response with the solution that it is compared with."""

    kind: str
    response: str
    solution: str


@dataclass(frozen=True)
class Verdict:
    """What a rule takes from a response, and whether that is right."""

    extracted: str
    right: bool


class LmEval:
    """lm-eval's own filters and metric for GSM8K."""

    @cached_property
    def task(self) -> dict[str, Any]:
        """The settings of the task in lm-eval's YAML file."""
        import lm_eval
        import yaml

        path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    def verdicts(self, rule: str, cases: Sequence[Case]) -> list[Verdict]:
        """lm-eval's verdicts by the filter of this name."""
        import lm_eval.filters.extraction
        import lm_eval.filters.selection  # noqa: F401  both register their filters
        from lm_eval.api.metrics import exact_match_fn
        from lm_eval.api.registry import get_filter

        found: Any = [[case.response] for case in cases]
        (steps,) = (each["filter"] for each in self.task["filter_list"] if each["name"] == rule)
        for step in steps:
            options = {name: value for name, value in step.items() if name != "function"}
            found = list(get_filter(step["function"])(**options).apply(found, []))
        (metric,) = self.task["metric_list"]
        names = ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
        options = {name: metric[name] for name in names}
        return [
            Verdict(
                text,
                bool(
                    exact_match_fn(predictions=[text], references=[case.solution], **options)[
                        "exact_match"
                    ]
                ),
            )
            for text, case in zip(found, cases, strict=True)
        ]


def our_verdict(rule: str, case: Case) -> Verdict:
    """The verdict of :data:`pad_fast.evaluation.answers.RULES`."""
    extracted = EXTRACT[rule](case.response)
    right = RULES[rule].is_right(case.response, case.solution)
    return Verdict(NOTHING if extracted is None else extracted, right)


def equal_in_value_alone(case: Case, theirs: Verdict, ours: Verdict) -> bool:
    """Whether a difference is the one that is meant: other text, the same value."""
    values = [number(without_ignored(text)) for text in (theirs.extracted, case.solution)]
    return ours.right and not theirs.right and values[0] is not None and values[0] == values[1]


def spoiled(solutions: Sequence[str], count: int, seed: int = 0) -> Iterator[Case]:
    """``count`` solutions in random order, each spoiled in one of the ways in turn."""
    rng, kinds = random.Random(seed), list(SPOILERS)
    for place, solution in enumerate(rng.sample(list(solutions), count)):
        yield spoil(kinds[place % len(kinds)], solution)


def spoil(kind: str, solution: str) -> Case:
    """A case from a solution that ends with "#### VALUE"."""
    work, _, value = solution.rpartition("#### ")
    return Case(kind, SPOILERS[kind](work, value.strip()), solution)


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.lstrip("-").isdecimal() else value


def own_cases() -> list[Case]:
    """The cases of the committed record."""
    return [spoil(kind, f"{WORK}#### {value}") for kind in SPOILERS for value in VALUES]


def record() -> Iterator[dict[str, Any]]:
    """lm-eval's version, and then its verdicts on our own cases, as the tests read them."""
    yield {"lm-eval": importlib.metadata.version("lm-eval")}
    cases, theirs = own_cases(), LmEval()
    verdicts = {rule: theirs.verdicts(rule, cases) for rule in EXTRACT}
    for place, case in enumerate(cases):
        found = {rule: verdicts[rule][place] for rule in EXTRACT}
        yield {"response": case.response, "solution": case.solution} | {
            rule: [verdict.extracted, verdict.right] for rule, verdict in found.items()
        }


def compare(name: str, cases: Sequence[Case]) -> list[str]:
    """Print how often both agree; the disagreements."""
    broken: list[str] = []
    for rule in EXTRACT:
        theirs, by_value = LmEval().verdicts(rule, cases), Counter[str]()
        extracted = agreed = 0
        for case, verdict in zip(cases, theirs, strict=True):
            ours = our_verdict(rule, case)
            extracted += ours.extracted == verdict.extracted
            agreed += ours.right == verdict.right
            if equal_in_value_alone(case, verdict, ours):
                by_value[case.kind] += 1
            elif ours.right != verdict.right:
                broken.append(f"{rule}: {case}: lm-eval {verdict}, ours {ours}")
            if ours.extracted != verdict.extracted:
                broken.append(f"{rule}: {case}: lm-eval takes {verdict}, ours {ours}")
        print(
            f"{name}, {rule}: {len(cases)} cases, the same extracted in {extracted}, the same "
            f"verdict in {agreed}, right by value alone {dict(by_value) or 'never'}"
        )
    return broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, or write the record; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="GSM8K as JSON lines")
    parser.add_argument("--spoiled", type=int, default=200, help="number of spoiled solutions")
    parser.add_argument("--write", type=Path, help="write the record of our own cases here")
    options = parser.parse_args(arguments)
    if options.write is not None:
        options.write.write_text("".join(json.dumps(row) + "\n" for row in record()))
    broken = compare("our own cases", own_cases())
    if options.data is not None:
        with options.data.open(encoding="utf-8") as lines:
            golds = [json.loads(line)["answer"] for line in lines]
        broken += compare("solutions", [Case("as it is", gold, gold) for gold in golds])
        broken += compare("spoiled", list(spoiled(golds, options.spoiled)))
    print(*broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
