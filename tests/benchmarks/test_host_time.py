"""The host time of small operations."""

import json

import pytest
import torch

from benchmarks import host_time, tables
from pad_fast import device, token_logprobs


@pytest.fixture
def own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_operation_is_timed_recorded_and_in_the_table(tmp_path, capsys, own_threads):
    host_time.main(["--calls", "3", "--results", str(tmp_path)])
    lines = (tmp_path / "host-time.jsonl").read_text().splitlines()
    everything = {
        (record["operation"], record["impl"]): record for record in map(json.loads, lines)
    }
    assert len(everything) == len(lines) == 14
    records = {name: record for (name, impl), record in everything.items() if impl == "torch"}
    assert len(records) == 8
    for name in set(records) - {name for name in records if name.startswith("F.")}:
        kernels, operations = (everything[name, impl]["operations"] for impl in ("triton", "torch"))
        assert 0 < kernels < operations
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


def test_nothing_is_launched_or_changed_for_good():
    logits = torch.randn(2, 3, 8)
    labels = torch.randint(8, (2, 3))
    before = token_logprobs(logits, labels)
    with host_time.launches_left_out():
        assert token_logprobs(logits, labels, impl="triton").shape == (2, 3)
        assert device.waits_for_values(logits.device)
    assert not device.waits_for_values(logits.device)
    assert torch.equal(token_logprobs(logits, labels), before)


def test_operations_are_counted():
    one = torch.ones(3)
    assert host_time.operations(lambda: one.add(one).mul(one)) == 2
