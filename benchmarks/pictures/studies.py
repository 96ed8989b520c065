"""Studies: commands with records of their own."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib import pyplot as plt

from benchmarks import run_memory
from benchmarks.contestants import NAIVE, OURS
from benchmarks.demo import stages
from benchmarks.pictures.style import COLOURS, OTHERS, level, over_grid, sign, without_frame
from benchmarks.records import Record
from pad_fast.evaluation.reported_metrics import METRICS

WAYS = {
    "enumeration": COLOURS[NAIVE],
    "subset recursion": "#c8442b",
    "meeting in the middle": "#2f6f9f",
    "sampled": "#5b9f6b",
}
DEMO_METRICS = ("greedy_accuracy", "sampled_accuracy", "kendall_tau", "top1")


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
        if (theirs := stages(records[0])[teacher][key]) is not None:
            level(axis, theirs, "teacher")
        axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
        axis.set_title(METRICS[key].text_heading, fontsize=10)
        axis.margins(y=0.15)
        axis.grid(axis="y", alpha=0.3)
        without_frame(axis)
    return figure


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
        over_grid(axis)
    sign(figure, first["device"], first["run"])
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
        level(axis, most / 2**30, f"{most / 2**30:g} GiB")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("prompts of 8 responses (dashed: the straight line)")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        over_grid(axis)
    axes[0].set_ylabel("GiB at most")
    sign(figure, records[0]["device"], records[0]["run"])
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
