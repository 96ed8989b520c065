"""Every contestant that is installed gives right numbers, and the others say why they do not."""

import importlib.util
import json
import os
from dataclasses import replace

import pytest
from measured import COMPILED, CPU, FIELDS, ROOFS, SMOKE, contestant, named

from benchmarks import tables
from benchmarks.cases import Case, Inputs, make_inputs
from benchmarks.contestants import NAIVE, OURS, OURS_COMPILED, Unsupported
from benchmarks.measure import make_step, run_case
from benchmarks.peers import PEERS
from benchmarks.suites import CONTESTANTS
from pad_fast.logprob import compiled

PEER_MODULES = {"trl", "liger_kernel", "cut_cross_entropy", "quack", "verl", "flash_attn"}


@pytest.mark.parametrize("case", SMOKE, ids=lambda case: case.label)
def test_everybody_is_right_or_says_why_not(case):
    crowd = [c for c in CONTESTANTS if c.name not in COMPILED]
    records = run_case(case, crowd, CPU, ROOFS)
    taking_part = {c.name for c in crowd if c.takes_part(case)}
    assert {record["contestant"] for record in records} == taking_part
    for record in records:
        assert set(record) == FIELDS
        assert json.loads(json.dumps(record)) == record
        if record["status"] == "ok":
            assert len(record["times_ms"]) == 2
            assert max(record["error"].values()) < 1e-5
            gradients = 2 if "linear" in case.job and not case.frozen else 1
            assert len(record["error"]) == 1 + case.backward * gradients
        else:
            assert record["status"] in ("absent", "unsupported"), record["reason"]
            assert record["reason"]
            assert record["times_ms"] == []
    ran = {record["contestant"] for record in records if record["status"] == "ok"}
    assert ran >= ({OURS} if case.curve or (case.job == "kl" and case["N"] > 8) else {OURS, NAIVE})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("job", ["token_logprobs", "linear_pair_loss"])
def test_compiled_contestants_run_or_say_why_not(job):
    case = next(case for case in SMOKE if case.job == job)
    for record in run_case(case, named(CONTESTANTS, *COMPILED), CPU, ROOFS):
        right = record["status"] == "absent" or max(record["error"].values()) < 1e-5
        assert right, record["reason"]


def test_our_compiled_loops_are_asked_for_in_their_own_steps_alone(monkeypatch):
    """Forward and backward see the variable; other contestants of the case do not."""
    monkeypatch.delenv(compiled.ENVIRONMENT_VARIABLE, raising=False)
    asked = []

    def is_asked_for(*_):
        asked.append(os.environ.get(compiled.ENVIRONMENT_VARIABLE))
        return False

    monkeypatch.setattr(compiled, "is_asked_for", is_asked_for)
    for one in named(CONTESTANTS, OURS, OURS_COMPILED):
        if one.takes_part(SMOKE[0]):
            make_step(one, SMOKE[0], make_inputs(SMOKE[0], CPU))()
    assert asked == [None, None, "1", "1"]
    capped = next(case for case in SMOKE if case.softcap and case.job == "token_logprobs")
    (record,) = run_case(capped, named(CONTESTANTS, OURS_COMPILED), CPU, ROOFS)
    assert record["status"] == "unsupported"


def test_a_contestant_that_fails_is_recorded_and_the_others_go_on():
    def absent(case: Case, inputs: Inputs):
        import no_such_package  # noqa: F401

    def broken(case: Case, inputs: Inputs):
        return lambda: inputs.logits[:, 10**6]

    def unsupported(case: Case, inputs: Inputs):
        raise Unsupported("no softcap")

    crowd = [contestant(build) for build in (absent, broken, unsupported)]
    crowd += [contestant(absent, least_memory=lambda case: 1 << 60), *named(CONTESTANTS, OURS)]
    records = run_case(SMOKE[0], crowd, CPU, ROOFS)
    statuses = [record["status"] for record in records]
    assert statuses == ["absent", "failed", "unsupported", "skipped", "ok"]
    assert "no_such_package" in records[0]["reason"]
    assert "IndexError" in records[1]["reason"]
    assert "no_such_package" in tables.line(records[0])


def test_a_peer_that_is_not_installed_is_absent_even_if_it_could_not_do_the_case(monkeypatch):
    real = importlib.util.find_spec

    def without_peers(name, *rest):
        return None if name in PEER_MODULES else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_peers)
    for case in (SMOKE[1], replace(SMOKE[4], backward=False)):  # with softcaps, on a CPU
        crowd = [c for c in PEERS if c.package != "trl" or case.job == "token_logprobs"]
        records = run_case(case, crowd, CPU, ROOFS)
        assert {record["status"] for record in records} == {"absent"}
