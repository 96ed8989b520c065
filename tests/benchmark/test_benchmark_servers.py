"""``pad-fast benchmark --server``: servers answer, go away, and the command goes on later."""

from __future__ import annotations

from pathlib import Path

import benchmark_files
import pytest
import worlds
from commands import failing
from stub_server import Stub

from pad_fast import cli
from pad_fast.evaluation.benchmarks.answer_check import check_answers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model."""
    return worlds.save_model(tmp_path_factory.mktemp("model") / "student", 0)


def words(model: Path, folder: Path, *more: object) -> list[str]:
    questions = benchmark_files.write_questions(folder, "arena_hard")
    given = ["benchmark", "arena_hard", "--model", model, "--questions", questions]
    given += ["--benchmark_max_new_tokens", 5, "--shard_size", 1, "--disable_tqdm", "true"]
    given += ["--dtype", "float32", "--output_dir", folder / "out", *more]
    return [str(word) for word in given]


def texts(folder: Path) -> dict:
    path = folder / "out" / "data" / "arena-hard-v2.0" / "model_answer" / "student.jsonl"
    return check_answers(path).turns()


def test_servers_answer_as_this_process_does(model, tmp_path):
    """Arena-Hard is greedy, so that both give the same texts."""
    assert cli.main(words(model, tmp_path / "own")) == 0
    one, other = Stub(model), Stub(model)
    try:
        given = words(model, tmp_path / "served", "--server", one.url, f"{other.url}/v1")
        assert cli.main(given) == 0
    finally:
        one.stop()
        other.stop()
    assert texts(tmp_path / "served") == texts(tmp_path / "own")


def test_a_server_that_goes_away(model, tmp_path, capsys, monkeypatch):
    """The message says so, what is finished stays, and the same command goes on."""
    from pad_fast.pipeline.benchmark.answering import Answering

    stub, own, done = Stub(model), Answering._answer_shard, []

    def leaving(self, *rest):
        if len(done) == 1:
            stub.stop()
        done.append(rest[1])
        return own(self, *rest)

    monkeypatch.setattr(Answering, "_answer_shard", leaving)
    given = words(model, tmp_path, "--server", stub.url, "--server_patience", 0.5)
    error = failing(capsys, *given)
    assert stub.url in error
    assert len(list((tmp_path / "out" / "shards").glob("*.parquet"))) == 1
    monkeypatch.undo()
    stub.start()
    try:
        assert cli.main(given) == 0
    finally:
        stub.stop()
    assert len(texts(tmp_path)) == len(benchmark_files.QUESTION_ROWS["arena_hard"])


def test_a_server_that_is_not_there(model, tmp_path, capsys):
    given = words(model, tmp_path, "--server", "http://127.0.0.1:9", "--server_patience", 0.2)
    assert "http://127.0.0.1:9 does not answer" in failing(capsys, *given)
