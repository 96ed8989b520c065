"""The host time of small operations."""

import json

import pytest
import torch

from benchmarks import host_time, tables


@pytest.fixture
def own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_operation_is_timed_recorded_and_in_the_table(tmp_path, capsys, own_threads):
    host_time.main(["--calls", "3", "--results", str(tmp_path)])
    lines = (tmp_path / "host-time.jsonl").read_text().splitlines()
    records = {record["operation"]: record for record in map(json.loads, lines)}
    assert len(records) == len(lines) == 8
    for record in records.values():
        assert 0 < record["least_us"] <= record["median_us"]
        assert {"run", "device", "commit", "versions"} < set(record)
    ours, peer = (
        records[f"{name}, forward and backward"] for name in ("token_logprobs", "F.cross_entropy")
    )
    assert ours["operations"] > peer["operations"] > 5
    shown = tables.fill("<!-- table:host-time -->\n<!-- /table:host-time -->", tmp_path)
    printed = capsys.readouterr().out.strip()
    assert printed in shown
    assert '| `PADLoss("ppd"), forward and backward` |' in printed


def test_operations_are_counted():
    one = torch.ones(3)
    assert host_time.operations(lambda: one.add(one).mul(one)) == 2
