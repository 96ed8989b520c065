"""``python -m benchmarks``: which records it adds, and what it refuses."""

import json

import pytest
import torch
from measured import FIELDS, ROOFS

from benchmarks import __main__
from benchmarks.records import RESULTS
from benchmarks.suites import SUITES


def test_the_command_adds_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__.machine, "roofs", lambda device: ROOFS)
    arguments = ["--suite", "smoke", "--case", "jsd", "--results", str(tmp_path)]
    for runs in (1, 2):
        assert __main__.main(arguments) == 0
        records = [json.loads(line) for line in (tmp_path / "smoke.jsonl").read_text().splitlines()]
        assert len(records) == 2 * runs
    run = {"run", "suite", "device", "driver", "threads", "python", "cuda", "versions", "commit"}
    assert {*run, "roofs", *FIELDS} == set(records[0])
    assert "pad_fast" in capsys.readouterr().out


def test_only_whole_suites_are_recorded():
    def results(*arguments: str):
        return __main__._parse(["--suite", *arguments]).results

    assert results("cpu") == RESULTS
    assert results("cpu", "--case", "linear") is None
    assert results("cpu", "--contestant", "TRL") is None
    assert results("steps-smoke") is None


def test_the_gpu_suite_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["--suite", "gpu"]) == 1
    assert "CUDA" in capsys.readouterr().err


def test_the_help_lists_every_suite(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    text = capsys.readouterr().out
    for suite in SUITES.values():
        assert f"{suite.content}, {suite.minutes:g} minutes" in text
