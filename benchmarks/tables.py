"""Tables and pictures out of the records: ``python -m benchmarks.tables``. No figure is ever typed.

Between ``<!-- table:cpu -->`` and ``<!-- /table:cpu -->`` of README.md and benchmarks/README.md stands what :func:`full` makes of the
suite's records; the mark ``summary:cpu`` asks for :func:`summary`, and ``table:demo`` for :func:`demo_table`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks import demo
from benchmarks.contestants import NAIVE, OURS
from benchmarks.machine import ROOT

RESULTS = Path(__file__).parent / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
NOT_RUN = {
    suite: "*Not yet run on a GPU.*" if "gpu" in suite else "*Not yet run.*"
    for suite in ("cpu", "gpu", "steps", "gpu-steps")
}

Record = dict
Cases = dict[str, list[Record]]  # by label


def load(results: Path, suite: str) -> list[Record]:
    path = results / f"{suite}.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if path.exists()
        else []
    )


def newest(records: Iterable[Record]) -> dict[tuple, Cases]:
    """The newest run of each device: {(device, run): {case: records}}. Figures of two runs never meet in one table."""
    last: dict[str, str] = {}
    kept = list(records)
    for record in kept:
        last[record["device"]] = max(record["run"], last.get(record["device"], ""))
    runs: dict[tuple, Cases] = {}
    for record in kept:
        if record["run"] == last[record["device"]]:
            runs.setdefault((record["device"], record["run"]), {}).setdefault(
                record["case"], []
            ).append(record)
    return runs


# Figures in words.


def number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def mebibytes(value: int | None) -> str:
    return (
        "–"
        if value is None
        else f"{value / 2**20:,.0f}"
        if value >= 10 * 2**20
        else f"{value / 2**20:.2g}"
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def times(value: float | None) -> str:
    """A ratio; a small one as a fraction."""
    return "–" if value is None else f"{number(value)}×" if value > 0.1 else f"1/{1 / value:,.0f}"


def errors(record: Record) -> tuple[str, str]:
    """Error of the results or the loss, and the worst of the gradients'."""
    found = dict(record["error"] or {})
    result = found.pop("results", found.pop("loss", None))
    return number(result, 2), number(max(found.values(), default=None), 2)


def line(record: Record) -> str:
    """One record for the terminal."""
    name = record["contestant"] + ("" if record["same_job"] else " (another job)")
    if record["status"] != "ok":
        return f"  {name:43} {record['status']}: {record['reason']}"
    result, gradient = errors(record)
    memory = f"{mebibytes(record['peak_bytes'])} MiB"
    error = f"error {result}, gradient {gradient}"
    roof = f"roof {percent(record['roof_share'])}"
    return f"  {name:43} {number(record['median_ms'], 4):>8} ms {times(record['ratio_to_naive']):>7} {memory:>11}  {roof:9}  {error}"


# Tables.


def full(cases: Cases) -> str:
    """Everything: a row for each contestant of each case."""
    head = [
        "contestant",
        "ms",
        "of naive",
        "MiB",
        "resident MiB",
        "of roof",
        "error",
        "gradient error",
        "remark",
    ]
    parts = []
    for label, records in cases.items():
        rows = [head, ["---", *["---:"] * 7, "---"]]
        for record in records:
            name = (
                f"**{record['contestant']}**"
                if record["contestant"] == OURS
                else record["contestant"]
            )
            remarks = [] if record["same_job"] else ["another job: a scalar loss"]
            if record["status"] != "ok":
                rows.append(
                    [
                        name,
                        *["–"] * 7,
                        "; ".join([*remarks, f"{record['status']}: {_plain(record['reason'])}"]),
                    ]
                )
                continue
            remarks += [
                _plain(text) for text in (record["note"], record["reason"], _target(record)) if text
            ]
            figures = [
                number(record["median_ms"]),
                times(record["ratio_to_naive"]),
                mebibytes(record["peak_bytes"]),
            ]
            figures += [
                mebibytes(record["rss_bytes"]),
                percent(record["roof_share"]),
                *errors(record),
            ]
            rows.append([name, *figures, "; ".join(remarks)])
        parts.append(f"**{label}**\n\n" + _markdown(rows))
    return "\n\n".join(parts)


def summary(cases: Cases) -> str:
    """A row for each case: ours beside naive, and the quickest other that does the same job."""
    rows = [
        ["case", "naive, ms", "ours, ms", "of naive's time", "of naive's memory", "quickest peer"],
        ["---", *["---:"] * 4, "---"],
    ]
    for label, records in cases.items():
        ran = {record["contestant"]: record for record in records if record["status"] == "ok"}
        if OURS not in ran or records[0].get("curve"):
            continue
        ours, naive = ran[OURS], ran.get(NAIVE)
        peers = [
            r
            for name, r in ran.items()
            if name != NAIVE and not name.startswith(OURS) and r["same_job"]
        ]
        best = min(peers, key=lambda record: record["median_ms"], default=None)
        share = ours["peak_bytes"] / naive["peak_bytes"] if naive and naive["peak_bytes"] else None
        cells = [
            label,
            number(naive["median_ms"]) if naive else "–",
            number(ours["median_ms"]),
            times(ours["ratio_to_naive"]),
        ]
        rows.append(
            [
                *cells,
                percent(share),
                f"{best['contestant']}, {number(best['median_ms'])} ms" if best else "–",
            ]
        )
    return _markdown(rows)


def _target(record: Record) -> str | None:
    """Ours against what we set out to reach, which is for an H200."""
    target = record.get("target_ms")  # records from before there were any have none
    if not target or record["contestant"] != OURS:
        return None
    over = record["median_ms"] / target - 1
    return f"target {number(target)} ms {f'missed by {over:.0%}' if over > 0 else 'met'}"


def _plain(text: str | None) -> str:
    return (text or "").replace("|", "/")


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def source(record: Record, roofs: dict[str, float]) -> str:
    """Where and on what a run was made."""
    versions = ", ".join(
        f"{name} {version}" for name, version in record["versions"].items() if version
    )
    driver = (
        f", driver {record['driver']}" if record["driver"] else f", {record['threads']} threads"
    )
    rates = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in roofs.items() if name != "copy"
    )
    return (
        f"{record['device']}{driver}; {versions}; commit {record['commit']}; {record['run']}. "
        f"Roofs of that run: copy {roofs['copy'] / 1e9:,.0f} GB/s, product {rates}."
    )


def newest_of(results: Path, name: str) -> list[Record]:
    """The records that the last ``python -m benchmarks.demo``, or of another such ``name``, added."""
    records = load(results, name)
    last = max((record["run"] for record in records), default=None)
    return [record for record in records if record["run"] == last]


def demo_table(records: list[Record]) -> str:
    """The demo before and after, over its seeds."""
    first, count = records[0], len(records)
    students = len({record["student"] for record in records})
    seconds = sorted(record["seconds"] for record in records)
    told = f"{count} runs ({students} base students), {seconds[0]} to {seconds[-1]} s each; of these rose: {demo.rises(records)}."
    machine = (
        f"{first['device']}, {first['threads']} threads; commit {first['commit']}; {first['run']}."
    )
    return f"{_markdown(demo.table(records))}\n\n{told} {machine}"


def render(kind: str, suite: str, results: Path) -> str:
    """The text for a mark: "table" or "summary" of a suite, or the demo's."""
    if suite == "demo":
        records = newest_of(results, "demo")
        return demo_table(records) if records else NOT_RUN["cpu"]
    make = full if kind == "table" else summary
    parts = []
    for cases in newest(load(results, suite)).values():
        first = next(iter(cases.values()))[0]
        parts.append(f"{source(first, first['roofs'])}\n\n{make(cases)}")
    return "\n\n".join(parts) or NOT_RUN[suite]


def fill(text: str, results: Path) -> str:
    """``text`` with what stands between its marks made anew."""

    def block(found: re.Match) -> str:
        return f"<!-- {found['mark']} -->\n{render(found['kind'], found['suite'], results)}\n<!-- /{found['mark']} -->"

    return re.sub(
        r"<!-- (?P<mark>(?P<kind>table|summary):(?P<suite>cpu|gpu|steps|gpu-steps|demo)) -->.*?<!-- /(?P=mark) -->",
        block,
        text,
        flags=re.S,
    )


def rebuild(results: Path = RESULTS, documents: Iterable[Path] = DOCUMENTS) -> None:
    for document in documents:
        if document.exists():
            document.write_text(fill(document.read_text(), results))
    try:
        from benchmarks import pictures
    except ImportError as error:
        print(f"benchmarks: tables are rebuilt, pictures are not: {error}")
        return
    written = [
        path
        for suite in NOT_RUN
        for path in pictures.draw(suite, newest(load(results, suite)), results)
    ]
    if records := newest_of(results, "demo"):
        written.append(pictures.draw_demo(records, results))
    if records := newest_of(results, "scaling"):
        written.append(pictures.draw_scaling(records, results))
    for path in written:
        print(f"benchmarks: wrote {path}")


if __name__ == "__main__":
    rebuild()
