"""The table of the suite of whole trainers."""

from __future__ import annotations

from benchmarks.contestants import OURS
from benchmarks.in_words import markdown, mebibytes, number, times, without_bars
from benchmarks.records import Cases, Record


def trainer_table(cases: Cases) -> str:
    """A row for each trainer and number of responses, with what a step takes and reads."""
    head = ["responses a prompt", "trainer", "s a step", "of TRL's", "peak resident MiB"]
    head += ["tokens read a step", "remark"]
    rows = [head, ["---:", "---", *["---:"] * 4, "---"]]
    for records in cases.values():
        theirs = next((r["median_ms"] for r in records if r["contestant"] != OURS), None)
        for record in records:
            ours = record["contestant"] == OURS
            name = f"**{OURS}** PADTrainer" if ours else record["contestant"]
            rows.append([str(record["shape"]["N"]), name, *_trainer_cells(record, ours and theirs)])
    return markdown(rows)


def _trainer_cells(record: Record, theirs: float | None) -> list[str]:
    if record["status"] != "ok":
        return [*["–"] * 4, f"{record['status']}: {without_bars(record['reason'])}"]
    remarks = [record["note"]] if record["note"] else []
    if record["shape"]["N"] == 2:
        remarks.append(f"DPO, loss after {len(record['losses'])} steps {record['losses'][-1]:.5f}")
    return [
        number(record["median_ms"] / 1000),
        times(record["median_ms"] / theirs) if theirs else "–",
        mebibytes(record["rss_bytes"]),
        f"{record['tokens']:,}",
        "; ".join(remarks),
    ]
