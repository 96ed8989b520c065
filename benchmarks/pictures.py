"""Pictures of the records; the only module here that needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cases import LISTWISE_JOBS
from benchmarks.contestants import NAIVE, OURS, ZERO
from benchmarks.demo import stages
from benchmarks.tables import Cases

COLOURS = {OURS: "#c8442b", NAIVE: "#8a8f98"}
OTHERS = ("#2f6f9f", "#5b9f6b", "#b58a2a", "#7d5ba6", "#3f9d9b", "#a05a7a", "#6b6b2a", "#446688")
WIDEST = 3.0  # times naive
JOB_COLOURS = {
    "vpd": "#5b9f6b", "kl": "#c8442b", "reverse_kl": "#b58a2a", "jsd": "#2f6f9f", "kl_sampled": "#a05a7a", "jsd_sampled": "#3f9d9b",
}  # fmt: skip
WAYS = {
    "enumeration": COLOURS[NAIVE],
    "subset recursion": "#c8442b",
    "meeting in the middle": "#2f6f9f",
    "sampled": "#5b9f6b",
}


def draw(suite: str, runs: dict[tuple, Cases], folder: Path) -> list[Path]:
    """Three pictures a device: time and memory of the token jobs, those over budget and rows, and the listwise losses over N."""
    written = []
    for place, ((device, run), cases) in enumerate(runs.items()):
        suffix = f"-{place}" if place else ""
        bars = {label: records for label, records in cases.items() if not records[0].get("curve")}
        tokens = {
            label: records
            for label, records in bars.items()
            if records[0]["job"] not in LISTWISE_JOBS
        }
        curves = {label: records for label, records in cases.items() if records[0].get("curve")}
        listwise = {
            label: records for label, records in cases.items() if records[0]["job"] in LISTWISE_JOBS
        }
        for name, some, plot in (
            ("tokens", tokens, _tokens),
            ("memory", curves, _curves),
            ("listwise", listwise, _listwise),
        ):
            if not some:
                continue
            figure = plot(some)
            figure.suptitle(
                f"{device}, {run[:10]}", fontsize=9, color="#555555", x=0.99, ha="right"
            )
            path = folder / f"{suite}-{name}{suffix}.png"
            figure.savefig(path, dpi=130)
            plt.close(figure)
            written.append(path)
    return written


DEMO_PANELS = {
    "greedy_accuracy": "right, greedy",
    "sampled_accuracy": "right, sampled",
    "kendall_tau": "Kendall's tau",
    "top1": "top-1",
}


def draw_demo(records: list[dict], folder: Path) -> Path:
    """A panel a measure, a line a run: the student before and after, and the teacher where it has the measure."""
    figure, axes = plt.subplots(1, len(DEMO_PANELS), figsize=(11, 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, DEMO_PANELS.items(), strict=True):
        for record in records:
            found = stages(record)
            axis.plot(
                ("before", "after"),
                [found[f"student {when}"][key] for when in ("before", "after")],
                "-o",
                color=COLOURS[OURS],
                alpha=0.6,
            )
        teacher = stages(records[0])["teacher"][key]
        if teacher is not None:
            axis.axhline(teacher, color=COLOURS[NAIVE], linestyle="--", linewidth=1)
            axis.annotate(
                "teacher",
                (0.02, teacher),
                xycoords=("axes fraction", "data"),
                va="bottom",
                fontsize=8,
                color="#555555",
            )
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.25, y=0.15)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    path = folder / "demo.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def draw_scaling(records: list[dict], folder: Path) -> Path:
    """Over the number of responses: time of each way, and what the sampled estimates say beside the exact values."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for (way, divergence), found in _by_way(records).items():
        style = "-o" if divergence == "jsd" else "--s"
        sizes = [record["n"] for record in found]
        axes[0].plot(
            sizes,
            [record["ms"] for record in found],
            style,
            color=WAYS[way],
            markersize=4,
            label=f"{divergence}, {way}",
        )
        if way == "sampled":
            error, value = (
                [record["standard_error"] for record in found],
                [record["value"] for record in found],
            )
            axes[1].errorbar(
                sizes,
                value,
                yerr=error,
                fmt=style,
                color=WAYS[way],
                markersize=4,
                capsize=3,
                label=f"{divergence}, {way}",
            )
        elif way != "enumeration":
            axes[1].plot(
                sizes,
                [record["value"] for record in found],
                style[:-1],
                color=WAYS[way],
                label=f"{divergence}, exact",
            )
    first = records[0]
    axes[0].set_ylabel(f"ms, forward+backward, {first['prompts']} prompts")
    axes[1].set_ylabel(
        f"nats, one prompt\nbars: standard error of one estimate, {first['samples']} draws"
    )
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlabel("responses of a prompt, N")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"{first['device']}, {first['run'][:10]}", fontsize=9, color="#555555", x=0.99, ha="right"
    )
    path = folder / "scaling.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _by_way(records: list[dict]) -> dict[tuple[str, str], list[dict]]:
    found: dict[tuple[str, str], list[dict]] = {}
    for record in sorted(records, key=lambda record: record["n"]):
        found.setdefault((record["way"], record["divergence"]), []).append(record)
    return found


def _tokens(cases: Cases) -> plt.Figure:
    """A group of bars a case, a bar a contestant: time and memory as multiples of naive's."""
    names = list(
        dict.fromkeys(
            r["contestant"] for records in cases.values() for r in records if r["status"] == "ok"
        )
    )
    colours = dict(COLOURS)
    for name in names:
        colours.setdefault(name, OTHERS[(len(colours) - len(COLOURS)) % len(OTHERS)])
    shown = {label: [r for r in records if r["status"] == "ok"] for label, records in cases.items()}
    count = sum(len(records) + 1 for records in shown.values())
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 1.6 + 0.21 * count), sharey=True, layout="constrained"
    )
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for label, records in shown.items():
        naive = next((r for r in records if r["contestant"] == NAIVE), None)
        start = place
        for record in records:
            bar = {
                "height": 0.9,
                "color": colours[record["contestant"]],
                "label": record["contestant"],
            }
            bar["hatch"] = None if record["same_job"] else "///"
            if record["ratio_to_naive"]:
                _bar(axes[0], place, record["ratio_to_naive"], bar)
            if naive and naive["peak_bytes"]:
                _bar(axes[1], place, record["peak_bytes"] / naive["peak_bytes"], bar)
            place += 1
        ticks.append(((start + place - 1) / 2, _wrap(label)))
        place += 1
    for axis, title in zip(axes, ("time", "memory beyond inputs and results"), strict=True):
        _ratio_axis(axis, f"{title}\nas a multiple of naive PyTorch's")
    axes[0].set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes[0].margins(y=0.01)
    axes[0].invert_yaxis()
    handles = {
        text: handle
        for axis in axes
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    return figure


def _bar(axis: Axes, place: float, ratio: float, style: dict) -> None:
    """A bar with its number, cut off at WIDEST, so that one slow contestant does not flatten the others."""
    axis.barh(place, min(ratio, WIDEST), **style)
    axis.annotate(
        f"{ratio:.2g}",
        (min(ratio, WIDEST), place),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
    )


def _ratio_axis(axis: Axes, title: str) -> None:
    axis.set_xlim(left=0)
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _wrap(label: str) -> str:
    job, shape, *rest = label.split(", ")
    return f"{job}, {shape}\n{', '.join(rest)}"


def _curves(cases: Cases) -> plt.Figure:
    """Time above memory, over the budget to the left and over the number of rows to the right."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex="col")
    ran = [r for records in cases.values() for r in records if r["status"] == "ok"]
    for column, (curve, of) in enumerate(
        (("budget", lambda r: r["budget"] / 2**20), ("M", lambda r: r["shape"]["M"]))
    ):
        for name, style in ((OURS, "-o"), (ZERO, "--s")):
            found = sorted(
                (of(r), r["median_ms"], r["peak_bytes"] / 2**20)
                for r in ran
                if r["curve"] == curve and r["contestant"] == name
            )
            if not found:
                continue
            places, *figures = zip(*found, strict=True)
            label = (
                "budget 0"
                if name == ZERO
                else "budget as given"
                if curve == "budget"
                else 'budget "auto"'
            )
            for axis, values in zip(axes[:, column], figures, strict=True):
                axis.plot(
                    places,
                    values,
                    style,
                    color=COLOURS[OURS],
                    alpha=1 if name == OURS else 0.55,
                    label=label,
                )
        if curve == "budget":
            axes[1, 0].axline(
                (0, 0), slope=1, color=COLOURS[NAIVE], linestyle=":", label="the budget"
            )
        else:
            for axis in axes[:, 1]:
                axis.set(xscale="log", yscale="log")
                axis.set_xticks(sorted({of(r) for r in ran if r["curve"] == curve}), minor=False)
                axis.xaxis.set_minor_formatter(NullFormatter())
                axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
                for tell in (
                    axis.xaxis.set_major_formatter,
                    axis.yaxis.set_major_formatter,
                    axis.yaxis.set_minor_formatter,
                ):
                    tell(FuncFormatter(lambda value, _: f"{value:,g}"))
    first = ran[0]["shape"]
    axes[1, 0].set_xlabel(
        f"memory_budget, MiB (M={next(r['shape']['M'] for r in ran if r['curve'] == 'budget'):,})"
    )
    axes[1, 1].set_xlabel("rows, M")
    axes[0, 0].set_ylabel(f"ms, forward+backward, D={first['D']:,} V={first['V']:,}")
    axes[1, 0].set_ylabel("MiB beyond inputs and gradients")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1]) if axis.get_yscale() == "linear" else None
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    return figure


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
                axis.plot(
                    *zip(*sorted(found), strict=True),
                    style,
                    color=JOB_COLOURS[job],
                    alpha=1 if name == OURS else 0.55,
                    label=label,
                )
    first = next(iter(cases.values()))[0]
    axis.set_yscale("log")
    axis.set_xlabel("responses of a prompt, N")
    axis.set_ylabel(f"ms, {first['work']}, {first['shape']['P']} prompts")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure
