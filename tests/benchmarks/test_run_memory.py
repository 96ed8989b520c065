"""The study of a run's memory over its prompts."""

import json

import pytest

from benchmarks import run_memory, run_phases, tables
from benchmarks.machine import describe
from benchmarks.records import append, path

MIB = 2**20
SIZES = 10_000, 30_000


@pytest.fixture
def results(tmp_path):
    """Records of an older run, and of one whose phases take 600 MiB and 1 or 10 KiB a prompt."""
    for run, factor in (("2025-01-02T03:04:05+00:00", 99), ("2026-01-02T03:04:05+00:00", 1)):
        for prompts in reversed(SIZES):
            for phase, slope in (("open", 1024), ("sample", 10 * 1024)):
                taken = factor * slope * prompts
                append(
                    path(tmp_path, run_memory.NAME),
                    {
                        **describe(run_memory.torch.device("cpu")),
                        "run": run,
                        "prompts": prompts,
                        "phase": phase,
                        "seconds": prompts / 1000,
                        "loaded_bytes": 500 * MIB,
                        "peak_bytes": 600 * MIB + taken,
                        "own_bytes": 400 * MIB + taken,
                    },
                )
    return tmp_path


def test_the_table_has_the_newest_peaks_and_the_line_to_a_million(results):
    text = tables.fill("<!-- table:run-memory -->\n<!-- /table:run-memory -->", results)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()[1:5]]
    assert rows[0] == ["phase", "10,000", "30,000", "1,000,000 (line)", "seconds at 30,000"]
    assert rows[2] == ["open", "610 (410)", "629 (429)", "1,577 (1,377)", "30"]
    assert rows[3] == ["sample", "698 (498)", "893 (693)", "10,366 (10,166)", "30"]
    assert "Modules alone: 500 MiB" in text
    tables.rebuild(results, [])
    assert (results / "run-memory.png").exists()


def test_a_phase_is_measured_where_it_is_done(tmp_path, capsys):
    run_phases.write_world(tmp_path, 12)
    run_memory.main(["--phase", "open", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert found["phase"] == "open"
    assert found["peak_bytes"] >= found["own_bytes"] > 0
    assert found["seconds"] > 0
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["prompts"]["train"] == 12
