"""Listwise losses over the number of responses."""

from __future__ import annotations

from matplotlib import pyplot as plt

from benchmarks.contestants import NAIVE, OURS
from benchmarks.pictures.style import OTHERS, over_grid
from benchmarks.records import Cases, Record, ran

JOB_COLOURS = {  # in the order of the legend; other losses follow
    "vpd": "#5b9f6b",
    "kl": "#c8442b",
    "reverse_kl": "#b58a2a",
    "jsd": "#2f6f9f",
    "kl_sampled": "#a05a7a",
    "jsd_sampled": "#3f9d9b",
}


def draw_listwise(cases: Cases) -> plt.Figure:
    """Time of ours and of the enumeration of all rankings."""
    figure, axis = plt.subplots(figsize=(9, 4.8), layout="constrained")
    for job, colour in job_colours(ran(cases)).items():
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
    over_grid(axis)
    # Beside the lines, since there are two dozen names.
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def job_colours(records: list[Record]) -> dict[str, str]:
    """The jobs of :data:`JOB_COLOURS`, and then those that only the records name."""
    colours = dict(JOB_COLOURS)
    for record in records:
        place = len(colours) - len(JOB_COLOURS)
        colours.setdefault(record["job"], OTHERS[(place + 3) % len(OTHERS)])
    return colours
