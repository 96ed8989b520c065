"""Pictures of the records; the only module here that needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.cases import LISTWISE_JOBS
from benchmarks.contestants import NAIVE, OURS
from benchmarks.tables import Cases

COLOURS = {OURS: "#c8442b", NAIVE: "#8a8f98"}
OTHERS = ("#2f6f9f", "#5b9f6b", "#b58a2a", "#7d5ba6", "#3f9d9b", "#a05a7a", "#6b6b2a", "#446688")
JOB_COLOURS = {"vpd": "#5b9f6b", "kl": "#c8442b", "jsd": "#2f6f9f"}


def draw(suite: str, runs: dict[tuple, Cases], folder: Path) -> list[Path]:
    """Two pictures a device: time and memory of the token jobs, and the listwise losses over N."""
    written = []
    for place, ((device, run), cases) in enumerate(runs.items()):
        suffix = f"-{place}" if place else ""
        tokens = {label: records for label, records in cases.items() if records[0]["job"] not in LISTWISE_JOBS}
        listwise = {label: records for label, records in cases.items() if records[0]["job"] in LISTWISE_JOBS}
        for name, some, plot in (("tokens", tokens, _tokens), ("listwise", listwise, _listwise)):
            if not some:
                continue
            figure = plot(some)
            figure.suptitle(f"{device}, {run[:10]}", fontsize=9, color="#555555", x=0.99, ha="right")
            path = folder / f"{suite}-{name}{suffix}.png"
            figure.savefig(path, dpi=130)
            plt.close(figure)
            written.append(path)
    return written


def _tokens(cases: Cases) -> plt.Figure:
    """A group of bars a case, a bar a contestant: time and memory as multiples of naive's."""
    names = list(dict.fromkeys(r["contestant"] for records in cases.values() for r in records if r["status"] == "ok"))
    colours = dict(COLOURS)
    for name in names:
        colours.setdefault(name, OTHERS[(len(colours) - len(COLOURS)) % len(OTHERS)])
    shown = {label: [r for r in records if r["status"] == "ok"] for label, records in cases.items()}
    count = sum(len(records) + 1 for records in shown.values())
    figure, axes = plt.subplots(1, 2, figsize=(12, 1.6 + 0.21 * count), sharey=True, layout="constrained")
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for label, records in shown.items():
        naive = next((r for r in records if r["contestant"] == NAIVE), None)
        start = place
        for record in records:
            bar = {"height": 0.9, "color": colours[record["contestant"]], "label": record["contestant"]}
            bar["hatch"] = None if record["same_job"] else "///"
            if record["ratio_to_naive"]:
                axes[0].barh(place, record["ratio_to_naive"], **bar)
            if naive and naive["peak_bytes"]:
                axes[1].barh(place, record["peak_bytes"] / naive["peak_bytes"], **bar)
            place += 1
        ticks.append(((start + place - 1) / 2, _wrap(label)))
        place += 1
    for axis, title in zip(axes, ("time", "memory beyond inputs and results"), strict=True):
        _ratio_axis(axis, f"{title}, as a multiple of naive PyTorch's")
    axes[0].set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes[0].invert_yaxis()
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _ratio_axis(axis: Axes, title: str) -> None:
    axis.set_xscale("log")
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _wrap(label: str) -> str:
    job, shape, *rest = label.split(", ")
    return f"{job}, {shape}\n{', '.join(rest)}"


def _listwise(cases: Cases) -> plt.Figure:
    """Time over the number of responses, ours and all rankings enumerated."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for job in LISTWISE_JOBS:
        for name, style in ((OURS, "-o"), (NAIVE, "--s")):
            found = [
                (r["shape"]["N"], r["median_ms"])
                for records in cases.values()
                for r in records
                if r["job"] == job and r["contestant"] == name and r["status"] == "ok"
            ]
            if found:
                label = f"{job}, {'ours' if name == OURS else 'plain' if job == 'vpd' else 'rankings enumerated'}"
                axis.plot(*zip(*sorted(found), strict=True), style, color=JOB_COLOURS[job], alpha=1 if name == OURS else 0.55, label=label)
    first = next(iter(cases.values()))[0]
    axis.set_yscale("log")
    axis.set_xlabel("responses of a prompt, N")
    axis.set_ylabel(f"ms, {first['work']}, {first['shape']['P']} prompts")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure
