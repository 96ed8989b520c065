"""The command that times tiles on a card: every candidate runs, and the tables' own comes first."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import tilings

JOBS = {
    "logits": tilings.Job(3, tilings._given(300, 0.0, False), tilings._given_tiles(0.0, False)),
    "back": tilings.Job(3, tilings._given(300, 30.0, True), tilings._given_tiles(30.0, True)),
    "rows": tilings.Job(3, tilings._rows(300, 30.0), tilings._row_tiles(30.0)),
    "jsd": replace(tilings._listwise_job("jsd", "exact", 3, num_warps=(2,)), rows=3),
    "kl": replace(tilings._listwise_job("kl", "exact", 3, num_warps=(2,)), rows=3),
    "sampled": replace(tilings._listwise_job("kl", "sampled", 3, DRAWS=(2,)), rows=3),
}


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """A CPU, where kernels run in the interpreter, as a card; each call is timed once."""
    from triton import testing

    from tests.interpreter import mend

    mend()
    monkeypatch.setattr(tilings, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(testing, "do_bench", lambda call, **options: 2.0)


def few(name):
    job = JOBS[name]
    return tilings.Job(job.rows, job.make, lambda: job.candidates()[:2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card runs the command itself")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("name", list(JOBS))
def test_candidates_are_timed_beside_the_tables_own(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tilings, "JOBS", {name: few(name)})
    monkeypatch.setattr(tilings, "describe", lambda device: {"device": "a card"})
    path = tmp_path / "tilings.jsonl"
    tilings.main([name, "--compile"])
    assert not path.exists()
    tilings.main(["--results", str(path)])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["ratio_to_present"] == 1
    assert len(second["times_ms"]) == tilings.PASSES
    assert first["tiling"] != second["tiling"]
    assert "ms" in capsys.readouterr().out


def test_a_candidate_that_does_not_run_is_said_and_left(capsys):
    def call():
        raise RuntimeError("out of registers")

    assert "out of registers" in tilings._problem(call, "a tile")
    assert "a tile" in capsys.readouterr().out


def test_an_unknown_job_is_named(capsys):
    with pytest.raises(SystemExit):
        tilings.main(["no such job"])
    assert "no such job" in capsys.readouterr().err
