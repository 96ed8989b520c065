"""Pictures of the records; the only module of the benchmarks that needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import run_memory
from benchmarks.contestants import NAIVE, OURS, OURS_BUDGET_0
from benchmarks.demo import stages
from benchmarks.evidence.pictures import draw_evidence
from benchmarks.records import Cases, Record, is_listwise, last_run, load, newest, ran
from benchmarks.suites import SUITES
from pad_fast.evaluation.reported_metrics import METRICS

COLOURS = {OURS: "#c8442b", NAIVE: "#8a8f98"}
OTHERS = ("#2f6f9f", "#5b9f6b", "#b58a2a", "#7d5ba6", "#3f9d9b", "#a05a7a", "#6b6b2a", "#446688")
WIDEST = 3.0  # multiple of naive at which a bar is cut off
JOB_COLOURS = {  # in the order of the legend; other losses follow
    "vpd": "#5b9f6b",
    "kl": "#c8442b",
    "reverse_kl": "#b58a2a",
    "jsd": "#2f6f9f",
    "kl_sampled": "#a05a7a",
    "jsd_sampled": "#3f9d9b",
}
WAYS = {
    "enumeration": COLOURS[NAIVE],
    "subset recursion": "#c8442b",
    "meeting in the middle": "#2f6f9f",
    "sampled": "#5b9f6b",
}
DEMO_METRICS = ("greedy_accuracy", "sampled_accuracy", "kendall_tau", "top1")


def draw_all(results: Path) -> list[Path]:
    """Draw the newest records of every suite and study; the files that were written."""
    written = []
    for suite in SUITES.values():
        if suite.is_recorded and suite.table != "trainers":
            written += draw(suite.name, newest(load(results, suite.name)), results)
    for name, plot in STUDIES.items():
        if records := last_run(results, name):
            written.append(_save(plot(records), results / f"{name}.png"))
    if (figure := draw_evidence(load(results, "evidence"))) is not None:
        written.append(_save(figure, results / "evidence.png"))
    return written


def draw(suite: str, runs: dict[tuple[str, str], Cases], folder: Path) -> list[Path]:
    """Three pictures for each device, as far as a suite has cases for them.

    Tokens: time and memory of the other jobs as bars. Memory: the curves over budget and rows.
    Listwise: time of the listwise losses over N.
    """
    written = []
    for place, ((device, run), cases) in enumerate(runs.items()):
        curves, listwise, others = _by_picture(cases)
        for name, chosen, plot in (
            ("tokens", others, _tokens),
            ("memory", curves, _curves),
            ("listwise", listwise, _listwise),
        ):
            if chosen:
                figure = plot(chosen)
                _sign(figure, device, run)
                suffix = f"-{place}" if place else ""
                written.append(_save(figure, folder / f"{suite}-{name}{suffix}.png"))
    return written


def _by_picture(cases: Cases) -> tuple[Cases, Cases, Cases]:
    """The cases that are points of curves, listwise losses, and all others."""
    curves: Cases = {}
    listwise: Cases = {}
    others: Cases = {}
    for label, records in cases.items():
        first = records[0]
        chosen = curves if first.get("curve") else listwise if is_listwise(first) else others
        chosen[label] = records
    return curves, listwise, others


def _sign(figure: plt.Figure, device: str, run: str) -> None:
    figure.suptitle(f"{device}, {run[:10]}", fontsize=9, color="#555555", x=0.99, ha="right")


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _without_frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _over_grid(axis: Axes) -> None:
    """Grid, open frame and legend of a picture of lines."""
    axis.grid(alpha=0.3)
    _without_frame(axis)
    axis.legend(fontsize=8, frameon=False)


# Bars: time and memory as multiples of naive PyTorch's.


def _tokens(cases: Cases) -> plt.Figure:
    """A group of bars for each case, a bar for each contestant."""
    shown = {label: [r for r in records if r["status"] == "ok"] for label, records in cases.items()}
    colours = _colours(record["contestant"] for record in ran(cases))
    count = sum(len(records) + 1 for records in shown.values())
    size = (12, 1.6 + 0.21 * count)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for label, records in shown.items():
        _bars(axes, place, records, colours)
        ticks.append((place + (len(records) - 1) / 2, _wrap(label)))
        place += len(records) + 1
    for axis, title in zip(axes, ("time", "memory beyond inputs and results"), strict=True):
        _ratio_axis(axis, f"{title}\nas a multiple of naive PyTorch's")
    axes[0].set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes[0].margins(y=0.01)
    axes[0].invert_yaxis()
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, texts = axis.get_legend_handles_labels()
        entries |= dict(zip(texts, handles, strict=True))
    place_below: dict[str, Any] = {"loc": "outside lower center", "ncols": 5}
    figure.legend(entries.values(), entries.keys(), **place_below, fontsize=8, frameon=False)
    return figure


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each contestant, in the order in which they are first met."""
    colours = dict(COLOURS)
    for name in names:
        colours.setdefault(name, OTHERS[(len(colours) - len(COLOURS)) % len(OTHERS)])
    return colours


def _bars(axes: Any, place: float, records: list[Record], colours: dict[str, str]) -> None:
    """The bars of one case, from ``place`` on: time on the first axis, memory on the second."""
    naive = next((record for record in records if record["contestant"] == NAIVE), None)
    for offset, record in enumerate(records):
        style = {
            "height": 0.9,
            "color": colours[record["contestant"]],
            "label": record["contestant"],
            "hatch": None if record["same_job"] else "///",
        }
        if record["ratio_to_naive"]:
            _bar(axes[0], place + offset, record["ratio_to_naive"], style)
        if naive and naive["peak_bytes"]:
            _bar(axes[1], place + offset, record["peak_bytes"] / naive["peak_bytes"], style)


def _bar(axis: Axes, place: float, ratio: float, style: dict[str, Any]) -> None:
    """A bar with its number, cut off so that one slow contestant does not flatten the others."""
    end = min(ratio, WIDEST)
    axis.barh(place, end, **style)
    right_of_it: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    axis.annotate(f"{ratio:.2g}", (end, place), **right_of_it, fontsize=7)


def _ratio_axis(axis: Axes, title: str) -> None:
    axis.set_xlim(left=0)
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    _without_frame(axis)


def _wrap(label: str) -> str:
    job, shape, *rest = label.split(", ")
    return f"{job}, {shape}\n{', '.join(rest)}"


# Curves: time above memory, over the budget to the left and over the number of rows to the right.


def _budget(record: Record) -> float:
    return record["budget"] / 2**20


def _rows(record: Record) -> float:
    return record["shape"]["M"]


def _curves(cases: Cases) -> plt.Figure:
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex="col")
    measured = ran(cases)
    over_budget = [record for record in measured if record["curve"] == "budget"]
    over_rows = [record for record in measured if record["curve"] == "M"]
    _curve(axes[:, 0], over_budget, _budget, "budget as given")
    identity = {"slope": 1, "color": COLOURS[NAIVE], "linestyle": ":", "label": "the budget"}
    axes[1, 0].axline((0, 0), **identity)
    _curve(axes[:, 1], over_rows, _rows, 'budget "auto"')
    for axis in axes[:, 1]:
        _both_logarithmic(axis, sorted({_rows(record) for record in over_rows}))
    first = measured[0]["shape"]
    axes[1, 0].set_xlabel(f"memory_budget, MiB (M={over_budget[0]['shape']['M']:,})")
    axes[1, 1].set_xlabel("rows, M")
    axes[0, 0].set_ylabel(f"ms, forward+backward, D={first['D']:,} V={first['V']:,}")
    axes[1, 0].set_ylabel("MiB beyond inputs and gradients")
    for axis in axes.flat:
        if axis.get_yscale() == "linear":
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        _over_grid(axis)
    return figure


def _curve(axes: Any, records: list[Record], x: Callable[[Record], float], ours: str) -> None:
    """Time on the first axis and memory on the second, over ``x``; ``ours`` labels our line."""
    for name, label, style, alpha in (
        (OURS, ours, "-o", 1.0),
        (OURS_BUDGET_0, "budget 0", "--s", 0.55),
    ):
        points = sorted(
            (x(record), record["median_ms"], record["peak_bytes"] / 2**20)
            for record in records
            if record["contestant"] == name
        )
        if points:
            places, *figures = zip(*points, strict=True)
            for axis, values in zip(axes, figures, strict=True):
                axis.plot(places, values, style, color=COLOURS[OURS], alpha=alpha, label=label)


def _both_logarithmic(axis: Axes, ticks: list[float]) -> None:
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(ticks, minor=False)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (
        axis.xaxis.set_major_formatter,
        axis.yaxis.set_major_formatter,
        axis.yaxis.set_minor_formatter,
    ):
        set_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


# Listwise losses over the number of responses.


def _listwise(cases: Cases) -> plt.Figure:
    """Time of ours and of the enumeration of all rankings."""
    figure, axis = plt.subplots(figsize=(9, 4.8), layout="constrained")
    for job, colour in _job_colours(ran(cases)).items():
        naive = "plain" if job == "vpd" else "rankings enumerated"
        for name, label, style, alpha in ((OURS, "ours", "-o", 1.0), (NAIVE, naive, "--s", 0.55)):
            points = sorted(
                (record["shape"]["N"], record["median_ms"])
                for record in ran(cases)
                if record["job"] == job and record["contestant"] == name
            )
            if points:
                line = zip(*points, strict=True)
                axis.plot(*line, style, color=colour, alpha=alpha, label=f"{job}, {label}")
    first = next(iter(cases.values()))[0]
    axis.set_yscale("log")
    axis.set_xlabel("responses of a prompt, N")
    axis.set_ylabel(f"ms, {first['work']}, {first['shape']['P']} prompts")
    _over_grid(axis)
    # Beside the lines, since there are two dozen names.
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _job_colours(records: list[Record]) -> dict[str, str]:
    """The jobs of :data:`JOB_COLOURS`, and then those that only the records name."""
    colours = dict(JOB_COLOURS)
    for record in records:
        place = len(colours) - len(JOB_COLOURS)
        colours.setdefault(record["job"], OTHERS[(place + 3) % len(OTHERS)])
    return colours


# Studies: commands with records of their own.


def draw_demo(records: list[Record]) -> plt.Figure:
    """A panel for each metric: a dot for each run of each method, and a line at their mean.

    A dashed line is the teacher, where the metric applies to it.
    """
    figure, axes = plt.subplots(1, len(DEMO_METRICS), figsize=(11, 3.4), layout="constrained")
    teacher, *labels = stages(records[0])
    for axis, key in zip(axes, DEMO_METRICS, strict=True):
        for place, label in enumerate(labels):
            values = [stages(record)[label][key] for record in records]
            colour = COLOURS[NAIVE] if place == 0 else COLOURS[OURS] if place == 1 else OTHERS[0]
            axis.plot([place] * len(values), values, "o", color=colour, alpha=0.5, markersize=4)
            mean = sum(values) / len(values)
            axis.plot([place - 0.3, place + 0.3], [mean, mean], color=colour, linewidth=2)
        level = stages(records[0])[teacher][key]
        if level is not None:
            _level(axis, level, "teacher")
        axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
        axis.set_title(METRICS[key].text_heading, fontsize=10)
        axis.margins(y=0.15)
        axis.grid(axis="y", alpha=0.3)
        _without_frame(axis)
    return figure


def _level(axis: Axes, value: float, text: str) -> None:
    axis.axhline(value, color=COLOURS[NAIVE], linestyle="--", linewidth=1)
    at_left: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
    axis.annotate(text, (0.02, value), **at_left, fontsize=8, color="#555555")


def draw_scaling(records: list[Record]) -> plt.Figure:
    """Over the number of responses: the time of each way, and estimates next to exact values."""
    figure, (time, value) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for (way, divergence), found in _by_way(records).items():
        style = "-o" if divergence == "jsd" else "--s"
        colour, dots = {"color": WAYS[way]}, {"markersize": 4}
        label = f"{divergence}, {way}"
        sizes, ms, values = ([record[key] for record in found] for key in ("n", "ms", "value"))
        time.plot(sizes, ms, style, **colour, **dots, label=label)
        if way == "sampled":
            bars = {"yerr": [record["standard_error"] for record in found], "capsize": 3}
            value.errorbar(sizes, values, fmt=style, **colour, **dots, **bars, label=label)
        elif way != "enumeration":
            value.plot(sizes, values, style[:-1], **colour, label=f"{divergence}, exact")
    first = records[0]
    time.set_ylabel(f"ms, forward+backward, {first['prompts']} prompts")
    bars_are = f"bars: standard error of one estimate, {first['samples']} draws"
    value.set_ylabel(f"nats, one prompt\n{bars_are}")
    for axis in (time, value):
        axis.set_yscale("log")
        axis.set_xlabel("responses of a prompt, N")
        _over_grid(axis)
    _sign(figure, first["device"], first["run"])
    return figure


def draw_run_memory(records: list[Record]) -> plt.Figure:
    """Over the prompts: the peak of each phase, and its straight line to a million prompts."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    goal, most = run_memory.GOAL
    phases = run_memory.by_phase(records)
    for axis, key, title in (
        (axes[0], "peak_bytes", "resident"),
        (axes[1], "own_bytes", "without pages of mapped files"),
    ):
        for colour, (phase, found) in zip(OTHERS, phases.items(), strict=False):
            sizes = [record["prompts"] for record in found]
            peaks = [record[key] / 2**30 for record in found]
            axis.plot(sizes, peaks, "-o", color=colour, markersize=4, label=phase)
            if len(found) > 1:
                slope, start = run_memory.line_of(found, key)
                end = (start + slope * goal) / 2**30
                axis.plot([sizes[-1], goal], [peaks[-1], end], "--", color=colour, linewidth=1)
        _level(axis, most / 2**30, f"{most / 2**30:g} GiB")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("prompts of 8 responses (dashed: the straight line)")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        _over_grid(axis)
    axes[0].set_ylabel("GiB at most")
    _sign(figure, records[0]["device"], records[0]["run"])
    return figure


def _by_way(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: record["n"]):
        found.setdefault((record["way"], record["divergence"]), []).append(record)
    return found


STUDIES: dict[str, Callable[[list[Record]], plt.Figure]] = {
    "demo": draw_demo,
    "scaling": draw_scaling,
    run_memory.NAME: draw_run_memory,
}
