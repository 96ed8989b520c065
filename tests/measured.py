"""What tests of the benchmarks share: tiny cases, a made-up machine and made-up contestants."""

from dataclasses import replace

import torch

from benchmarks.contestants import OURS_COMPILED, Contestant
from benchmarks.suites import SUITES

CPU = torch.device("cpu")
ROOFS = {"copy": 1e10, "float32": 1e11}
SMOKE = [replace(case, rounds=2) for case in SUITES["smoke"].cases]
# Contestants that compile for seconds a case.
COMPILED = {"torch.compile", "Liger chunked SimPO", OURS_COMPILED}
FIELDS = {
    *("job", "shape", "work", "dtype", "live", "softcap", "frozen", "curve", "budget", "case"),
    *("contestant", "contestant_version", "same_job", "note", "status", "reason", "clock"),
    *("times_ms", "median_ms", "ratio_to_naive", "peak_bytes", "rss_bytes", "error"),
    *("error_against", "floor_ms", "roof_share", "target_ms"),
}
RUN = {
    "run": "2026-01-02T03:04:05+00:00",
    "suite": "cpu",
    "device": "An Example CPU",
    "driver": None,
    "threads": 2,
    "versions": {"torch": "2.0"},
    "commit": "abc",
    "roofs": ROOFS,
}


def contestant(build, **options) -> Contestant:
    return Contestant("made up", ("token_logprobs",), build, **options)


def named(contestants, *names: str) -> list:
    return [contestant for contestant in contestants if contestant.name in names]
