"""The parts of docs/evidence.md and docs/evidence-tables.md that are made from the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.evidence import claims as claims_of_paper
from benchmarks.evidence import findings
from benchmarks.evidence.settings import FULL, SIZES
from benchmarks.evidence.tables import examples, report, shown
from benchmarks.records import Record

PICTURE = (
    "![For each setting and method how good greedy answers are, by the measure that the setting is "
    "judged by, with its 95% interval: at equal steps as a dot, at equal tokens as a ring.]"
    "(../benchmarks/results/evidence.png)"
)
REAL = tuple(SIZES[name] for name in ("prompted", "smollm2"))


def picture(records: Sequence[Record]) -> str:
    """The picture of the settings, where one is drawn."""
    return PICTURE if findings.studied(records) else f"*{findings.NOT_RUN.capitalize()}.*"


def decisions(records: Sequence[Record]) -> str:
    """What to train, by what one has."""
    return "{.stacked}\n" + shown(findings.decisions(records), "left")


def claims(records: Sequence[Record]) -> str:
    """The paper's claims, and whether they hold here."""
    return "{.stacked}\n" + shown(claims_of_paper.claims(records), "left")


def tables(records: Sequence[Record]) -> str:
    """All tables of all settings."""
    parts = [report(size, records, with_examples=False) for size in (FULL, *REAL)]
    return "\n\n".join(filter(None, parts)) or f"*{findings.NOT_RUN.capitalize()}.*"


def samples(records: Sequence[Record]) -> str:
    """Greedy answers of each method on real models, side by side."""
    parts = []
    for results in findings.studied(records):
        if results.size in REAL and (found := examples(results)):
            parts.append(f"### {results.setting.title}\n\n{found}")
    return "\n\n".join(parts) or f"*{findings.NOT_RUN.capitalize()}.*"


PARTS: dict[str, Callable[[Sequence[Record]], str]] = {
    "evidence:verdict": findings.verdict,
    "evidence:picture": picture,
    "evidence:decisions": decisions,
    "evidence:asides": findings.asides,
    "evidence:claims": claims,
    "evidence:samples": samples,
    "evidence:tables": tables,
}
