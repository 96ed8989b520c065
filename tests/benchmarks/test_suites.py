"""The list of suites, which takes its listwise jobs from the table of losses."""

from dataclasses import replace

import pytest
from measured import CPU, ROOFS

from benchmarks import tables
from benchmarks.cases import Case
from benchmarks.contestants import NAIVE, OURS
from benchmarks.listwise import jobs
from benchmarks.measure import run_case
from benchmarks.suites import CONTESTANTS, SUITES
from pad_fast.preference import loss_kinds


def test_suites_hold_every_job_and_no_label_twice():
    head = Case("linear_token_logprobs", (2048, 768, 50257))
    assert any(replace(case, rounds=head.rounds) == head for case in SUITES["cpu"].cases)
    for suite in ("cpu", "gpu"):
        cases = SUITES[suite].cases
        tokens = {"token_logprobs", "response_rewards", "linear_token_logprobs"}
        assert {case.job for case in cases} >= {*tokens, *jobs()}
        assert len({case.label for case in cases}) == len(cases)
    heads = [case for case in SUITES["gpu"].cases if case.job == "linear_token_logprobs"]
    assert {case.live_share for case in heads if case.backward} == {1.0, 0.5}


def test_listwise_jobs_have_the_sizes_that_the_library_computes():
    found = jobs()
    assert {"vpd", "kl", "reverse_kl", "jsd", "kl_sampled", "jsd_sampled"} <= set(found)
    assert "vpd_sampled" not in found
    assert found["jsd"].sizes == (4, 6, 8, 10)
    assert found["reverse_kl"].sizes == (8,)
    assert (found["kl_sampled"].sizes, found["jsd_sampled"].sizes) == ((16,), (8,))


def test_a_loss_that_is_added_to_the_table_is_measured(monkeypatch):
    def squared(student, teacher, options):
        return (options.beta * (student - teacher)).square().sum(1)

    kind = loss_kinds.Kind("toy", loss_kinds.by_autograd(squared), max_exact=6)
    toy = loss_kinds.Loss("toy_loss", title="toy", help="a toy", kinds=(kind,))
    monkeypatch.setitem(loss_kinds.LOSSES, "toy_loss", toy)
    for name, size in (("cpu", (64, 6)), ("gpu", (512, 6)), ("smoke", (5, 4))):
        assert [case.shape for case in SUITES[name].cases if case.job == "toy"] == [size]
    case = next(case for case in SUITES["smoke"].cases if case.job == "toy")
    records = run_case(replace(case, rounds=2), CONTESTANTS, CPU, ROOFS)
    by_name = {record["contestant"]: record for record in records}
    assert set(by_name) == {OURS, NAIVE}
    assert by_name[OURS]["status"] == "ok", by_name[OURS]["reason"]
    assert max(by_name[OURS]["error"].values()) < 1e-5
    assert by_name[OURS]["error_against"] == "own float64"
    assert (by_name[NAIVE]["status"], "no definition" in by_name[NAIVE]["reason"]) == (
        "unsupported",
        True,
    )
    assert "| **pad_fast** |" in tables.full({case.label: records})


def test_a_job_that_nothing_defines_is_refused():
    with pytest.raises(ValueError, match=r"job must be one of .*jsd.*, got 'toy'"):
        Case("toy", (5, 4))


def test_the_readme_of_the_benchmarks_shows_all_suites():
    text = tables.DOCUMENTS[1].read_text()
    assert "<!-- tables -->" in text
    assert "<!-- suites -->" in text
