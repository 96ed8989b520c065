"""Whole runs whose models are served: the same numbers, also when run or servers are killed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import worlds
from huggingface_hub import constants
from served_runs import (
    ROLES,
    assert_rewards_of_this_process,
    assert_same_results,
    engine,
    killed_and_resumed,
    same,
)
from stub_server import Stub
from worlds import changed_config, run_config

from pad_fast import cli
from pad_fast.pipeline import rounds
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.serving import run_engines
from pad_fast.pipeline.serving.run_engines import RunEngines

FORWARDER = Path(__file__).parents[2] / "forwarder.py"


@pytest.fixture(scope="module")
def through_urls(world, tmp_path_factory) -> tuple[Path, str, list[Stub]]:
    """A run of one round with two servers of the student and one of the teacher.

    The teacher's weights are its server's alone.
    """
    folder = tmp_path_factory.mktemp("urls")
    students = [Stub(world / "student", served_as="student") for _ in range(2)]
    no_weights = shutil.ignore_patterns("*.safetensors")
    own = shutil.copytree(world / "teacher", folder / "teacher", ignore=no_weights)
    teacher = Stub(world / "teacher", root=str(own))
    config = changed_config(
        world,
        folder,
        student_server=[stub.url + "/v1/" for stub in students],
        teacher=str(own),
        teacher_server=[teacher.url],
        score_cache=str(folder / "scores"),
    )
    trained, said = folder / "run" / "round-01" / "student", []

    def hear(*words: str, **_: object) -> None:
        """What somebody does who reads the line: one server after the other gets the weights."""
        said.extend(words)
        if words[0].startswith("\nThe run waits"):
            waiting = [stub for stub in students if not stub.loaded]
            threading.Timer(0.1, waiting[0].load, (trained,)).start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pad_fast.report.write_report", lambda root: root / "report.html")
        patch.setattr(run_engines, "POLL", 0.02)
        patch.setattr(run_engines, "print", hear, raising=False)
        assert cli.main(["run", str(config)]) == 0
    for stub in (*students, teacher):
        stub.stop()
    return folder / "run", "\n".join(said), [*students, teacher]


def test_rewards_are_those_of_this_process(through_urls, world, tmp_path):
    """Log-probabilities, questions and rewards, of the round and of the held-out groups."""
    run, _, _ = through_urls
    config = run_config(world)
    for samples, scores in (
        ("round-01/samples", "round-01/scores"),
        ("heldout/samples", "heldout/groups"),
    ):
        served = read_rows(run / scores)
        assert_rewards_of_this_process(served, run / samples, config, tmp_path / scores)
        assert {(row["sampled_by"], row["scored_by"]) for row in served} == {("vllm 0.32.0",) * 2}
    assert json.loads((run / "run.json").read_text())["engines"] == {
        "student": ["vllm 0.32.0"],
        "teacher": ["vllm 0.32.0"],
    }


def test_the_new_student_is_waited_for(through_urls, world):
    run, said, stubs = through_urls
    student = run / "round-01" / "student"
    assert f"waits for servers with {student}" in said
    assert f"still serves the weights of {world / 'student'}" in said or "other weights" in said
    for stub in stubs[:2]:
        assert f"vllm serve {student} --port {stub.port}" in said
    groups = read_rows(run / "heldout" / "groups")
    fixed = read_rows(run / "evaluation" / "samples" / "student-01" / "fixed")
    prompts, ids = ([row[c] for row in groups] for c in ("prompt_ids", "completion_ids"))
    found = [row["student_rewards"] for row in fixed]
    same(found, engine(student, "student", run_config(world)).rewards(prompts, ids))
    assert found != [row["student_rewards"] for row in groups]


def test_both_servers_of_the_student_work(through_urls):
    _, _, stubs = through_urls
    assert min(stub.answered for stub in stubs) > 10


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_servers_of_its_own_give_the_same_and_are_gone(through_urls, world, tmp_path, monkeypatch):
    """They are there in the phases that ask them, and never while the student is trained."""
    stubs = {role: Stub(world / role) for role in ("student", "teacher")}
    config = changed_config(
        world,
        tmp_path,
        **{
            f"{role}_serve": f"{sys.executable} {FORWARDER} {stub.url} {{model}} {{port}}"
            for role, stub in stubs.items()
        },
    )
    own_train, seen = rounds.train_round, []

    def train(run, round) -> None:
        seen.append([pid for pid in pids(tmp_path) if os.path.exists(f"/proc/{pid}")])
        own_train(run, round)

    monkeypatch.setattr(rounds, "train_round", train)
    assert cli.main(["run", str(config)]) == 0
    run = tmp_path / "run"
    assert seen == [[]]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids(tmp_path))
    trained = run / "round-01" / "student"
    assert stubs["student"].loaded == [world / "student", world / "student", trained]
    assert set(stubs["teacher"].loaded) == {world / "teacher"}
    expected = through_urls[0]
    for part in ("round-01/scores", "heldout/groups"):
        assert read_rows(run / part) == read_rows(expected / part)
    for stub in stubs.values():
        stub.stop()


def pids(folder: Path) -> list[str]:
    logs = (folder / "run" / "servers").glob("*.log")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [pid for line in lines if line.startswith("pids ") for pid in line.split()[1:]]


@pytest.mark.long
def test_killed_everywhere_the_result_is_the_same(through_urls, world, tmp_path):
    """The run is killed in each phase, and its servers die and come back meanwhile."""
    stubs = [Stub(world / role) for role in ("student", "teacher")]
    config = changed_config(
        world, tmp_path, student_server=[stubs[0].url], teacher_server=[stubs[1].url]
    )
    killed_and_resumed(config, *stubs)
    assert_same_results(tmp_path / "run", through_urls[0])


@pytest.mark.long
@pytest.mark.usefixtures("no_report")
def test_one_of_two_servers_is_not_there_at_the_start(world, tmp_path, monkeypatch, caplog):
    """The run warns and goes on with the other; the student's comes when it is trained."""
    stubs = {role: [Stub(world / role, served_as=role) for _ in range(2)] for role in ROLES}
    for gone, _ in stubs.values():
        gone.stop()
    own_train = rounds.train_round

    def train(run, round) -> None:
        own_train(run, round)
        for stub in stubs["student"]:
            stub.load(tmp_path / "run" / "round-01" / "student")
        for gone, _ in stubs.values():
            gone.start()

    monkeypatch.setattr(rounds, "train_round", train)
    urls = {f"{role}_server": [stub.url for stub in stubs[role]] for role in ROLES}
    assert cli.main(["run", str(changed_config(world, tmp_path, **urls))]) == 0
    for gone, _ in stubs.values():
        assert f"{gone.url} does not answer: ConnectError" in caplog.text
        assert gone.answered > 5, "it is taken up"
    for stub in (*stubs["student"], *stubs["teacher"]):
        stub.stop()


def test_what_is_there_at_the_start_is_tried_first(world, tmp_path, capsys):
    """Nothing is sampled before the teacher's server has been tried too."""
    good, bad = Stub(world / "student"), Stub(world / "teacher", raw=False)
    config = changed_config(world, tmp_path, student_server=[good.url], teacher_server=[bad.url])
    assert cli.main(["run", str(config)]) == cli.BAD_INPUT
    assert "--logprobs-mode raw_logprobs" in capsys.readouterr().err
    bad.stop()
    assert cli.main(["run", str(config)]) == cli.BAD_INPUT
    assert f"{bad.url} does not answer" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("part-*"))
    good.stop()


@pytest.mark.parametrize(
    ("role", "changes", "longest"),
    [("student", {}, 8), ("teacher", {}, 8), ("teacher", {"teacher_system_prompt": "Brief!"}, 15)],
)
def test_a_window_without_room_for_the_longest_prompt(
    world, tmp_path, capsys, role, changes, longest
):
    """It is refused before anything is sampled, where else the run would die after its training."""
    stub = Stub(world / role, window=longest + 6)
    config = changed_config(world, tmp_path, **{f"{role}_server": [stub.url]}, **changes)
    assert cli.main(["run", str(config)]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert f"{stub.url} takes {longest + 6} tokens, and the longest prompt has {longest}" in told
    assert f"start the server with --max-model-len {longest + 7} or more, lower max_new_to" in told
    assert "by 1, or set max_prompt_length" in told
    assert not list((tmp_path / "run").rglob("part-*"))
    stub.window = longest + 7
    assert cli.main(["sample", str(config)]) == cli.BAD_INPUT
    assert "the longest prompt" not in capsys.readouterr().err, "the trial's own does not fit"
    stub.stop()


def test_the_teachers_command_is_tried_before_anything_is_sampled(world, tmp_path, capsys):
    """And not where a run goes on that has begun to sample."""
    command = f"touch {tmp_path}/tried; exit 7; {{model}} {{port}}"
    config = changed_config(world, tmp_path, teacher_serve=command)
    assert cli.main(["sample", str(config)]) == cli.BAD_INPUT
    assert "ended with exit code 7" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("part-*"))
    (tmp_path / "tried").unlink()
    (tmp_path / "run" / "heldout" / "samples").mkdir()
    (tmp_path / "run" / "heldout" / "samples" / "part-00000.parquet.tmp").touch()
    assert cli.main(["sample", str(config)]) == 0
    assert not (tmp_path / "tried").exists()
    assert cli.main(["score", str(config)]) == cli.BAD_INPUT
    assert (tmp_path / "tried").exists()


def test_a_student_server_with_other_weights(world, tmp_path, capsys):
    other = worlds.save_model(tmp_path / "student", 77)
    stub, teacher = Stub(other), Stub(world / "teacher")
    config = changed_config(
        world, tmp_path, student_server=[stub.url], teacher_server=[teacher.url]
    )
    assert cli.main(["run", str(config)]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "student_server" in told
    assert "serves other weights: they are" in told
    assert f"serve {world / 'student'}" in told
    for each in (stub, teacher):
        each.stop()


def test_a_server_of_its_own_has_the_revision(world, tmp_path, monkeypatch):
    """By the folder of its commit, since a server would take the newest of a name."""
    commit, repository = "5" * 40, tmp_path / "models--org--judge"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(world / "teacher", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stub = Stub(snapshot)
    command = f"{sys.executable} {FORWARDER} {stub.url} {{model}} {{port}}"
    config = run_config(world, teacher_serve=command)
    engines = RunEngines(config, ModelScores(config, "mean"), tmp_path, print, list, lambda _: [])
    with engines.open(Checkpoint("teacher", "org/judge", "v1")) as engine:
        assert stub.loaded == [snapshot]
        assert engine.identity == "vllm 0.32.0", "its numbers are the same wherever the cache is"
    engines.close()
    stub.stop()
    with (
        pytest.raises(ValueError, match=r"^teacher: org/judge is neither a folder nor a model"),
        engines.open(Checkpoint("teacher", "org/judge", "v2")),
    ):
        pass


def test_a_judge_runs_in_this_process_beside_served_models(world, tmp_path):
    urls = {"student_server": ["http://127.0.0.1:9"], "teacher_server": ["http://127.0.0.1:9"]}
    config = run_config(world, output_dir=str(tmp_path), benchmark_judge="a/judge", **urls)
    scores = ModelScores(config, "mean")
    known = []
    engines = RunEngines(
        config, scores, tmp_path, lambda *one: known.append(one), list, lambda _: []
    )
    judge = Checkpoint("benchmark_judge", str(world / "teacher"))
    with engines.open(judge) as engine:
        assert isinstance(engine, TransformersEngine)
    assert [role for role, _ in known] == ["benchmark_judge"]
    assert not engines.are_servers(judge)
    assert engines.are_servers(Checkpoint("teacher", str(world / "teacher")))
