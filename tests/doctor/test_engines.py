"""The doctor on a run whose models are served."""

from __future__ import annotations

import json

import pytest
import torch
import worlds
from stub_server import Stub
from worlds import changed_config

from pad_fast import cli
from pad_fast.doctor import engine_difference
from pad_fast.pipeline.batch_sizes import held_bytes
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.findings import engines


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    worlds.write_config(folder)
    stubs = [Stub(folder / role) for role in ("student", "teacher")]
    yield folder, stubs
    for stub in stubs:
        stub.stop()


def test_both_engines_are_compared(served, tmp_path, capsys, monkeypatch):
    """This process reads in batches that fit it, which were not counted for the servers."""
    world, stubs = served
    loaded, real = [], engine_difference.scores_here
    monkeypatch.setattr(
        engine_difference,
        "scores_here",
        lambda run, model: loaded.append(model.role) or real(run, model),
    )
    config = changed_config(
        world, tmp_path, student_server=[stubs[0].url], teacher_server=[stubs[1].url]
    )
    capsys.readouterr()
    cli.main(["doctor", str(config), "--json", "true", "--num_prompts", "4"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    found = {finding["check"]: finding for finding in findings}
    for role in ("student", "teacher"):
        finding = found[f"engines: {role}"]
        assert finding["verdict"] == "ok"
        assert "by vllm 0.32.0" in finding["found"]
        assert 0 <= finding["numbers"]["most"] < 1e-5
    assert not (tmp_path / "run").exists()
    assert loaded == ["student", "teacher"]


def test_a_teacher_is_too_large_in_the_data_type_of_the_run(world, monkeypatch):
    wide, narrow = (
        Checkpoint("teacher", str(world / "teacher"), dtype=name)
        for name in ("float32", "bfloat16")
    )
    held = held_bytes(wide, torch.float32)
    monkeypatch.setattr(engine_difference, "all_memory", lambda device: int(held / 0.8) - 2)
    assert "do not fit into" in engine_difference._too_large(wide)
    assert engine_difference._too_large(narrow) == ""


def test_what_a_difference_is():
    own = [[-1.0, -2.0, None], [-1.0, -1.5, -3.0]]
    near = [[-1.01, -2.0, None], [-1.0, -1.52, -3.0]]
    finding = engines.difference("teacher", "vllm 1", near, own)
    assert finding.verdict == "ok"
    assert finding.numbers["most"] == pytest.approx(0.02)
    assert finding.numbers["mean"] == pytest.approx(0.03 / 5)
    turned = [[-2.0, -1.0, None], [-1.0, -1.5, -3.0]]
    finding = engines.difference("teacher", "vllm 1", turned, own)
    assert finding.verdict == "problem"
    assert "50.0% of the pairs change their order" in finding.found
