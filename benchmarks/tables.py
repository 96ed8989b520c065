"""Tables and pictures from the records: ``python -m benchmarks.tables``. No figure is ever typed.

``<!-- MARK -->`` and ``<!-- /MARK -->``, in README.md, benchmarks/README.md or docs/, enclose one:

- ``table:NAME``, a suite's newest run on each device; ``summary:NAME``, rows of the last one;
- ``tables``, all suites in full, each under its title;
- ``suites``, their list;
- ``table:demo``, ``table:run-memory`` and ``table:host-time``, the studies of these names;
- ``evidence:NAME``, of the study;
- ``ratios``, of the main README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from benchmarks import demo, host_time, run_memory
from benchmarks.contestants import NAIVE, OURS
from benchmarks.evidence.page import PARTS
from benchmarks.in_words import markdown, mebibytes, number, percent, times, without_bars
from benchmarks.machine import ROOT
from benchmarks.ratios import ratios
from benchmarks.records import (
    RESULTS,
    Cases,
    Record,
    last_run,
    load,
    memory_of_naive,
    newest,
    quickest_peer,
)
from benchmarks.suites import SUITES, Suite
from benchmarks.trainer_table import trainer_table

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
COLUMNS = (
    "contestant",
    "ms",
    "of naive",
    "MiB",
    "resident MiB",
    "of roof",
    "error",
    "gradient error",
    "remark",
)
NO_FIGURES = ["–"] * (len(COLUMNS) - 2)


def errors(record: Record) -> tuple[str, str]:
    """The error of the results or the loss, and the largest of the gradients' errors."""
    found = dict(record["error"] or {})
    result = found.pop("results", found.pop("loss", None))
    return number(result, 2), number(max(found.values(), default=None), 2)


def line(record: Record) -> str:
    """One record for the terminal."""
    name = record["contestant"] + ("" if record["same_job"] else " (another job)")
    if record["status"] != "ok":
        return f"  {name:43} {record['status']}: {record['reason']}"
    result, gradient = errors(record)
    figures = [
        f"{number(record['median_ms'], 4):>8} ms",
        f"{times(record['ratio_to_naive']):>7}",
        f"{mebibytes(record['peak_bytes']) + ' MiB':>11} ",
        f"{'roof ' + percent(record['roof_share']):9} ",
        f"error {result}, gradient {gradient}",
    ]
    return f"  {name:43} {' '.join(figures)}"


# Tables.


def full(cases: Cases) -> str:
    """Everything that was measured: a table for each case, with a row for each contestant."""
    head = [list(COLUMNS), ["---", *["---:"] * len(NO_FIGURES), "---"]]
    return "\n\n".join(
        f"**{label}**\n\n{markdown([*head, *(_full_row(record) for record in records)])}"
        for label, records in cases.items()
    )


def _full_row(record: Record) -> list[str]:
    name = record["contestant"]
    name = f"**{name}**" if name == OURS else name
    remarks = [] if record["same_job"] else ["another job: a scalar loss"]
    if record["status"] != "ok":
        remarks.append(f"{record['status']}: {without_bars(record['reason'])}")
        return [name, *NO_FIGURES, "; ".join(remarks)]
    texts = (record["note"], record["reason"], _target(record), _profile(record))
    remarks += [without_bars(text) for text in texts if text]
    return [
        name,
        number(record["median_ms"]),
        times(record["ratio_to_naive"]),
        mebibytes(record["peak_bytes"]),
        mebibytes(record["rss_bytes"]),
        percent(record["roof_share"]),
        *errors(record),
        "; ".join(remarks),
    ]


def summary(cases: Cases) -> str:
    """A row for each case: ours next to naive, and the fastest other that does the same job."""
    rows = [
        ["case", "naive, ms", "ours, ms", "of naive's time", "of naive's memory", "quickest peer"],
        ["---", *["---:"] * 4, "---"],
    ]
    for label, records in cases.items():
        measured = {r["contestant"]: r for r in records if r["status"] == "ok"}
        if OURS in measured and not records[0].get("curve"):
            rows.append([label, *_summary_cells(measured)])
    return markdown(rows)


def _summary_cells(measured: dict[str, Record]) -> list[str]:
    ours, naive = measured[OURS], measured.get(NAIVE)
    best = quickest_peer(measured)
    return [
        number(naive["median_ms"]) if naive else "–",
        number(ours["median_ms"]),
        times(ours["ratio_to_naive"]),
        percent(memory_of_naive(measured)),
        _beside(best, ours) if best else "–",
    ]


def _beside(peer: Record, ours: Record) -> str:
    share = times(ours["median_ms"] / peer["median_ms"])
    return f"{peer['contestant']}, {number(peer['median_ms'])} ms; ours {share}"


def _target(record: Record) -> str | None:
    """Our time against the target, which is for an H200."""
    target = record.get("target_ms")  # the oldest records have no such key
    if not target or record["contestant"] != OURS:
        return None
    over = record["median_ms"] / target - 1
    return f"target {number(target)} ms {f'missed by {over:.0%}' if over > 0 else 'met'}"


def _profile(record: Record) -> str | None:
    """The share of each part of the model in our step, the largest first."""
    parts = record.get("profile")
    if not parts:
        return None
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return "of the step with loss and AdamW: " + ", ".join(
        f"{name} {percent(share)}" for name, share in ordered
    )


def source(record: Record) -> str:
    """The machine, the versions, the commit and the time of a run."""
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items() if found)
    driver = f"driver {record['driver']}" if record["driver"] else f"{record['threads']} threads"
    roofs = dict(record["roofs"])
    copy = roofs.pop("copy")
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in roofs.items())
    return (
        f"{record['device']}, {driver}; {versions}; commit {record['commit']}; {record['run']}. "
        f"Roofs of that run: copy {copy / 1e9:,.0f} GB/s, product {rates}."
    )


LAYOUTS: dict[str, Callable[[Cases], str]] = {
    "full": full,
    "both": lambda cases: f"{summary(cases)}\n\n{full(cases)}",
    "trainers": trainer_table,
}


def demo_table(records: list[Record]) -> str:
    """The demo's methods over its students and seeds."""
    first = records[0]
    students = len({record["student"] for record in records})
    seconds = sorted(record["seconds"] for record in records)
    runs = f"{len(records)} runs ({students} base students), {seconds[0]} to {seconds[-1]} s each."
    ahead = (
        f"Number of runs in which no other method is above one, by measure: {demo.ahead(records)}."
    )
    machine = f"{first['device']}, {first['threads']} threads"
    source = f"{machine}; commit {first['commit']}; {first['run']}."
    return f"{markdown(demo.table(records))}\n\n{runs} {ahead} {source}"


# Documents.


def _suite(suite: Suite, make: Callable[[Cases], str], results: Path, *, last=False) -> str:
    """The newest run of each device, or the last of all, by one of the functions above."""
    records = (last_run if last else load)(results, suite.name)
    parts = [
        f"{source(next(iter(cases.values()))[0])}\n\n{make(cases)}"
        for cases in newest(records).values()
    ]
    return "\n\n".join(parts) or f"*Not yet run on {'a GPU' if suite.on_gpu else 'a CPU'}.*"


def _of_last_run(name: str, make: Callable[[list[Record]], str], results: Path) -> str:
    """The last run of a study that is no suite."""
    records = last_run(results, name)
    return make(records) if records else "*Not yet run.*"


def _run_memory(records: list[Record]) -> str:
    first = records[0]
    source = f"{first['device']}; commit {first['commit']}; {first['run']}."
    loaded = max(record["loaded_bytes"] for record in records)
    note = f"Modules alone: {mebibytes(loaded)} MiB. {source}"
    picture = f"![Peak memory of each phase over the prompts](results/{run_memory.NAME}.png)"
    return f"{markdown(run_memory.table(records))}\n\n{note}\n\n{picture}"


def _host_time(records: list[Record]) -> str:
    first = records[0]
    versions = f"{first['device']}; torch {first['versions']['torch']}; commit {first['commit']}"
    calls = f"{first['calls']} calls of each, in turns."
    return f"{host_time.table(records)}\n\n{calls} {versions}; {first['run']}."


def _all_suites(results: Path) -> str:
    return "\n\n".join(
        f"## {suite.title}\n\n{_suite(suite, LAYOUTS[suite.table], results)}"
        for suite in SUITES.values()
        if suite.is_recorded
    )


def _list_of_suites(results: Path) -> str:
    rows = [["suite", "what is measured", "device", "minutes at most"], ["---"] * 3 + ["---:"]]
    for suite in SUITES.values():
        if suite.is_recorded:
            device = "GPU" if suite.on_gpu else "CPU"
            rows.append([f"`{suite.name}`", suite.content, device, f"{suite.minutes:g}"])
    return markdown(rows)


def _of_study(make: Callable[[list[Record]], str], results: Path) -> str:
    return make(load(results, "evidence"))


def marks() -> dict[str, Callable[[Path], str]]:
    """Every mark, and the function that makes its text from the folder of results."""
    found: dict[str, Callable[[Path], str]] = {
        "tables": _all_suites,
        "suites": _list_of_suites,
        "table:demo": partial(_of_last_run, "demo", demo_table),
        "table:run-memory": partial(_of_last_run, run_memory.NAME, _run_memory),
        "table:host-time": partial(_of_last_run, host_time.NAME, _host_time),
        "ratios": ratios,
    }
    for name, make in PARTS.items():
        found[name] = partial(_of_study, make)
    for suite in SUITES.values():
        found[f"table:{suite.name}"] = partial(_suite, suite, LAYOUTS[suite.table])
        short = LAYOUTS[suite.table] if suite.table == "trainers" else summary
        found[f"summary:{suite.name}"] = partial(_suite, suite, short, last=True)
    return found


def fill(text: str, results: Path) -> str:
    """``text``, with everything between its marks made anew."""
    known = marks()

    def block(found: re.Match) -> str:
        mark = found["mark"]
        if mark not in known:
            return found[0]
        return f"<!-- {mark} -->\n{known[mark](results)}\n<!-- /{mark} -->"

    return re.sub(r"<!-- (?P<mark>[\w:-]+) -->.*?<!-- /(?P=mark) -->", block, text, flags=re.S)


def rebuild(results: Path = RESULTS, documents: Iterable[Path] = DOCUMENTS) -> None:
    """Make the tables in the documents and the pictures in the folder of results anew."""
    for document in documents:
        if document.exists():
            document.write_text(fill(document.read_text(), results))
    try:
        from benchmarks.pictures.draw import draw_all
    except ImportError as error:
        print(f"benchmarks: tables are rebuilt, pictures are not: {error}")
        return
    for path in draw_all(results):
        print(f"benchmarks: wrote {path}")


if __name__ == "__main__":
    rebuild()
