"""The benchmarks: every contestant that can be had gives right numbers, the others say why not, and tables hold what records say."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__, memory, scaling, steps, tables
from benchmarks.cases import IGNORE_INDEX, LISTWISE_JOBS, Case, Inputs, make_inputs
from benchmarks.contestants import NAIVE, OURS, ZERO, Contestant, Unsupported, takes_part
from benchmarks.measure import floor_seconds, run_case
from benchmarks.peers import PEERS
from benchmarks.suites import CONTESTANTS, SUITES
from benchmarks.truth import truth_of

CPU = torch.device("cpu")
ROOFS = {"copy": 1e10, "float32": 1e11}
SMOKE = [replace(case, rounds=2) for case in SUITES["smoke"]]
PEER_MODULES = {"trl", "liger_kernel", "cut_cross_entropy", "quack", "verl", "flash_attn"}
COMPILED = {"torch.compile", "Liger chunked SimPO"}  # seconds a case: tried once
FIELDS = {
    "job", "shape", "work", "dtype", "live", "softcap", "frozen", "curve", "budget", "case", "contestant", "contestant_version",
    "same_job", "note", "status", "reason", "clock", "times_ms", "median_ms", "ratio_to_naive", "peak_bytes", "rss_bytes", "error",
    "error_against", "floor_ms", "roof_share", "target_ms",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contestant(build, **options) -> Contestant:
    return Contestant("made up", ("token_logprobs",), build, **options)


@pytest.mark.parametrize("case", SMOKE, ids=lambda case: case.label)
def test_everybody_is_right_or_says_why_not(case):
    records = run_case(case, [c for c in CONTESTANTS if c.name not in COMPILED], CPU, ROOFS)
    assert {record["contestant"] for record in records} == {
        c.name
        for c in CONTESTANTS
        if case.job in c.jobs and c.name not in COMPILED and takes_part(case, c)
    }
    for record in records:
        assert set(record) == FIELDS
        assert json.loads(json.dumps(record)) == record
        if record["status"] == "ok":
            assert len(record["times_ms"]) == 2
            assert max(record["error"].values()) < 1e-5
            assert len(record["error"]) == 1 + case.backward * (
                2 if "linear" in case.job and not case.frozen else 1
            )
        else:
            assert record["status"] in ("absent", "unsupported"), record["reason"]
            assert record["reason"]
            assert record["times_ms"] == []
    ran = {record["contestant"] for record in records if record["status"] == "ok"}
    assert ran >= ({OURS} if case.curve or (case.job == "kl" and case["N"] > 8) else {OURS, NAIVE})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler warns of is not ours to mend
@pytest.mark.parametrize("job", ["token_logprobs", "linear_pair_loss"])
def test_what_torch_compiles_runs_or_says_why_not(job):
    case = next(case for case in SMOKE if case.job == job)
    (record,) = run_case(case, [c for c in CONTESTANTS if c.name in COMPILED], CPU, ROOFS)
    assert record["status"] == "absent" or max(record["error"].values()) < 1e-5, record["reason"]


def test_an_absent_peer_is_reported_and_the_others_go_on():
    def absent(case: Case, inputs: Inputs):
        import no_such_package  # noqa: F401

    def broken(case: Case, inputs: Inputs):
        return lambda: inputs.logits[:, 10**6]

    def unfit(case: Case, inputs: Inputs):
        raise Unsupported("no softcap")

    crowd = [
        contestant(absent),
        contestant(broken),
        contestant(unfit),
        contestant(absent, memory=lambda case: 1 << 60),
    ]
    records = run_case(SMOKE[0], [*crowd, *(c for c in CONTESTANTS if c.name == OURS)], CPU, ROOFS)
    assert [record["status"] for record in records] == [
        "absent",
        "failed",
        "unsupported",
        "skipped",
        "ok",
    ]
    assert "no_such_package" in records[0]["reason"]
    assert "IndexError" in records[1]["reason"]
    assert "no_such_package" in tables.line(records[0])


def test_what_is_not_installed_is_absent_whatever_it_could_not_do(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in PEER_MODULES else real(name, *rest),
    )
    for case in (SMOKE[1], replace(SMOKE[4], backward=False)):  # with softcaps, on a CPU
        records = run_case(
            case,
            [c for c in PEERS if c.package != "trl" or case.job == "token_logprobs"],
            CPU,
            ROOFS,
        )
        assert {record["status"] for record in records} == {"absent"}


def test_a_target_is_met_or_missed_by_so_much():
    record = {"contestant": OURS, "median_ms": 1.5, "target_ms": 1.0}
    assert tables._target(record) == "target 1.00 ms missed by 50%"
    assert tables._target(record | {"median_ms": 0.9}) == "target 1.00 ms met"
    assert tables._target(record | {"contestant": NAIVE}) is None


def test_wrong_numbers_show_in_the_error():
    def off_by_a_little(case: Case, inputs: Inputs):
        return lambda: inputs.logits.log_softmax(-1).gather(-1, inputs.rows[:, None])[:, 0] * 1.001

    (record,) = run_case(SMOKE[0], [contestant(off_by_a_little)], CPU, ROOFS)
    assert record["error"]["results"] > 1e-4
    assert record["error"]["logits"] == pytest.approx(1e-3, rel=0.01)


def test_a_contestant_that_overwrites_its_inputs_spoils_nobody_elses():
    def vandal(case: Case, inputs: Inputs):
        def call():
            result = inputs.logits.log_softmax(-1).gather(-1, inputs.rows[:, None])[:, 0]
            inputs.logits.detach().zero_()
            return result

        return call

    plain = [c for c in CONTESTANTS if c.name == NAIVE]
    crowd = [contestant(vandal, overwrites=True), *plain]
    for record in run_case(replace(SMOKE[0], backward=False), crowd, CPU, ROOFS):
        assert record["error"]["results"] < 1e-5


def test_a_scalar_loss_is_measured_against_the_mean_and_marked():
    def mean(case: Case, inputs: Inputs):
        return lambda: torch.nn.functional.cross_entropy(
            inputs.logits, inputs.labels, ignore_index=IGNORE_INDEX
        )

    (record,) = run_case(SMOKE[0], [contestant(mean, sign=-1, scalar=True)], CPU, ROOFS)
    assert not record["same_job"]
    assert "another job" in tables.line(record)
    assert record["error"]["loss"] < 1e-5
    assert record["error"]["logits"] < 1e-5


def test_inputs_are_random_where_they_count_and_the_same_each_time():
    case = Case("linear_token_logprobs", (256, 16, 100), live=0.5)
    first, second = make_inputs(case, CPU), make_inputs(case, CPU)
    assert torch.equal(first.hidden, second.hidden)
    live = first.labels != IGNORE_INDEX
    assert live.sum() == 128
    assert first.upstream[live].std() > 0.5
    assert first.upstream[~live].abs().max() == 0
    assert truth_of(case, first).results[live].mean() > -8  # labels stand out


def test_truth_is_autograd_in_float64():
    case = Case("token_logprobs", (20, 50), live=0.5, softcap=4.0)
    inputs = make_inputs(case, CPU)
    logits = inputs.logits.detach().double().requires_grad_()
    logps = ((logits / 4).tanh() * 4).log_softmax(-1).gather(-1, inputs.rows[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(logps, logits, inputs.upstream.double())
    truth = truth_of(case, inputs)
    assert truth.result_error(logps) < 1e-12
    assert truth.gradient_error("logits", gradient) < 1e-12


def test_memory_counts_temporaries_and_leaves_out_what_was_there():
    there = torch.ones(1 << 20)

    def step():
        twice = there * 2
        return ((twice + 1).sum(),)

    peak, outputs = memory.allocated_peak(step, CPU)
    assert 8 << 20 <= peak < (8 << 20) + 4096
    assert outputs[0].item() == 3 * (1 << 20)
    big = torch.ones(1 << 24)
    resident = memory.resident_peak(lambda: ((big * 2).sum(),))
    assert resident is None or 60 << 20 < resident < 80 << 20


def test_floors_count_what_must_be_moved_or_multiplied():
    roofs = {"copy": 1.0, "float32": 1.0, "bfloat16": 2.0}
    case = Case("token_logprobs", (10, 100), dtype="bfloat16", live=0.5)
    assert floor_seconds(replace(case, backward=False), roofs) == 1000  # half the rows read
    assert floor_seconds(case, roofs) == 4000  # half the rows read twice, all gradients written
    linear = Case("linear_token_logprobs", (10, 7, 100), dtype="bfloat16")
    assert floor_seconds(linear, roofs) == 3 * 2 * 7000 / 2
    assert floor_seconds(replace(linear, frozen=True), roofs) == 2 * 2 * 7000 / 2
    assert floor_seconds(Case("kl", (2, 3)), roofs) is None


def test_suites_hold_what_is_asked_for():
    head = Case("linear_token_logprobs", (2048, 768, 50257))
    assert any(replace(case, rounds=head.rounds) == head for case in SUITES["cpu"])
    for suite in ("cpu", "gpu"):
        assert {case.job for case in SUITES[suite]} >= {
            "token_logprobs",
            "response_rewards",
            "linear_token_logprobs",
            *LISTWISE_JOBS,
        }
        assert len({case.label for case in SUITES[suite]}) == len(SUITES[suite])
    assert {
        case.live for case in SUITES["gpu"] if case.job == "linear_token_logprobs" and case.backward
    } == {1.0, 0.5}


# Whole steps.


@pytest.mark.parametrize("case", steps.STEP_SUITES["steps-smoke"], ids=lambda case: case.label)
def test_every_way_of_a_whole_step_is_right_or_says_why_not(case):
    records = steps.run_step_case(replace(case, rounds=1), steps.STEP_CONTESTANTS, CPU, ROOFS)
    assert [record["contestant"] for record in records] == [
        contestant.name for contestant in steps.STEP_CONTESTANTS
    ]
    for record in records:
        assert json.loads(json.dumps(record)) == record
        if record["status"] == "ok":
            assert record["error"]["results"] < 1e-5
            assert record["peak_bytes"] > 0
            assert record["tokens_per_second"] > 0
        else:
            assert (record["status"], bool(record["reason"])) == ("absent", True)
    assert {record["contestant"] for record in records if record["status"] == "ok"} >= {
        NAIVE,
        steps.UNSHARED,
        OURS,
    }
    assert "| **pad_fast** |" in tables.full({case.label: records})
    assert case.label in tables.summary({case.label: records})


def test_the_longest_response_is_found():
    asked = []

    def fits(length: int) -> bool:
        asked.append(length)
        return length <= 5000

    assert 4750 <= steps.search(fits, 256, 1 << 18) <= 5000
    assert len(asked) < 15
    assert steps.search(lambda length: False, 256, 1 << 18) == 0
    assert steps.search(lambda length: True, 256, 1024) == 1024
    case = steps.StepCase("longest response", "tiny", 3, 12, 4)
    records = steps.longest_response(case, CPU, most=8)
    assert [(record["contestant"], record["tokens"]) for record in records] == [
        (NAIVE, 8),
        (OURS, 8),
    ]
    assert "longest response: 8 tokens" in tables.full({case.label: records})


# Tables and pictures, from records made here.


@pytest.fixture(scope="module")
def results(tmp_path_factory, one_thread):
    """A folder with one run of a made-up machine."""
    folder = tmp_path_factory.mktemp("results")
    said = {
        "run": "2026-01-02T03:04:05+00:00", "suite": "cpu", "device": "An Example CPU", "driver": None, "threads": 2,
        "versions": {"torch": "2.0"}, "commit": "abc", "roofs": ROOFS,
    }  # fmt: skip
    records = []
    for case in (
        SMOKE[0],
        *(case for case in SMOKE if case.curve),
        next(case for case in SMOKE if case.job == "kl"),
    ):
        records += run_case(
            case, [c for c in CONTESTANTS if c.name in (OURS, ZERO, NAIVE, "QuACK CE")], CPU, ROOFS
        )
    lines = [json.dumps(said | record) for record in records]
    older = [
        json.dumps(said | record | {"run": "2025-01-02T03:04:05+00:00", "median_ms": 987654.0})
        for record in records
    ]
    (folder / "cpu.jsonl").write_text("\n".join(older + lines) + "\n")
    return folder


def test_tables_are_made_of_the_newest_records_between_the_marks(results, tmp_path):
    readme = tmp_path / "README.md"
    marks = "".join(
        f"<!-- {mark} -->\nstale\n<!-- /{mark} -->\n\n"
        for mark in ("table:cpu", "summary:cpu", "table:gpu")
    )
    readme.write_text(f"before\n{marks}after\n")
    tables.rebuild(results, [readme, tmp_path / "absent.md"])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "987654" not in text
    assert "2025-01-02" not in text
    assert "An Example CPU" in text
    assert "Not yet run on a GPU" in text
    record = next(
        json.loads(line)
        for line in (results / "cpu.jsonl").read_text().splitlines()[::-1]
        if OURS in line
    )
    assert f"| **{OURS}** | {tables.number(record['median_ms'])} |" in text
    assert (
        "absent: No module named 'quack'" in text or "unsupported: its kernels need a GPU" in text
    )
    once = text
    tables.rebuild(results, [readme])
    assert readme.read_text() == once


def test_the_cost_over_responses_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "SECONDS", 0.0)
    monkeypatch.setattr(scaling, "LAST", {**scaling.LAST, "enumeration": 3})
    path = tmp_path / "scaling.jsonl"
    scaling.main(["--sizes", "3", "4", "--prompts", "2", "--samples", "64", "--results", str(path)])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    by = {(r["divergence"], r["n"], r["way"]): r for r in records}
    assert (
        len(by) == len(records) == 10
    )  # three ways to each of two divergences, and enumeration of 3 only
    for divergence, exact in (("kl", "subset recursion"), ("jsd", "meeting in the middle")):
        assert by[divergence, 3, exact]["value"] == pytest.approx(
            by[divergence, 3, "enumeration"]["value"], rel=1e-4
        )
        sampled = by[divergence, 4, "sampled"]
        assert (
            abs(sampled["value"] - by[divergence, 4, exact]["value"])
            < 4.5 * sampled["standard_error"] / 200**0.5
        )
    tables.rebuild(tmp_path, [])
    assert (tmp_path / "scaling.png").exists()


def test_pictures_are_drawn(results, capsys):
    tables.rebuild(results, [])
    assert {path.name for path in results.glob("*.png")} == {
        "cpu-tokens.png",
        "cpu-memory.png",
        "cpu-listwise.png",
    }


def test_the_command_appends_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__.machine, "roofs", lambda device: ROOFS)
    arguments = ["--suite", "smoke", "--case", "jsd", "--results", str(tmp_path)]
    for runs in (1, 2):
        assert __main__.main(arguments) == 0
        records = [json.loads(line) for line in (tmp_path / "smoke.jsonl").read_text().splitlines()]
        assert len(records) == 2 * runs
    assert {
        "run",
        "suite",
        "device",
        "driver",
        "threads",
        "python",
        "cuda",
        "versions",
        "commit",
        "roofs",
        *FIELDS,
    } == set(records[0])
    assert "pad_fast" in capsys.readouterr().out


def test_the_gpu_suite_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["--suite", "gpu"]) == 1
    assert "CUDA" in capsys.readouterr().err


def test_small_ratios_are_fractions():
    assert (tables.times(None), tables.times(1.234), tables.times(0.00025)) == (
        "–",
        "1.23×",
        "1/4,000",
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1.00"),
        (123.456, "123"),
        (0.01234, "0.0123"),
        (1e-7, "1.0e-07"),
        (1e6, "1.0e+06"),
    ],
)
def test_numbers_keep_three_digits(value, text):
    assert tables.number(value) == text
