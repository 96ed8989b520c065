"""What the hub's library raises, in words: what happened, and what to do."""

from __future__ import annotations

import re

import pytest
from hub_commands import asked_of_the_hub
from huggingface_hub import constants, errors
from worlds import changed_config

from pad_fast import cli
from pad_fast.pipeline import hub, rounds


class Answer:
    """What the library keeps of the hub's answer."""

    def __init__(self, path: str, status: int) -> None:
        self.url, self.status_code = f"https://huggingface.co/{path}", status
        self.headers, self.request = {}, None


def raised(kind: type, path: str = "", status: int = 401) -> Exception:
    """An error of the library, as transformers and datasets pass it on."""
    error = kind("what it says\nin lines", response=Answer(path, status)) if path else kind("x")
    try:
        raise OSError("You are trying to access a repo.\nSee the hub.") from error
    except OSError as passed_on:
        return passed_on


WEIGHTS = "google/gemma-2-2b-it/resolve/main/config.json"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (raised(errors.GatedRepoError, WEIGHTS, 403), "at {hub}/google/gemma-2-2b-it with"),
        (
            raised(errors.GatedRepoError, "api/datasets/a/b/revision/main", 403),
            "at {hub}/datasets/a/b with",
        ),
        (raised(errors.RepositoryNotFoundError, "api/models/a/b"), "a/b: the hub has none of this"),
        (raised(errors.RepositoryNotFoundError, "gpt3/resolve/x"), "hides it: see the spelling"),
        (raised(errors.RevisionNotFoundError, WEIGHTS, 404), "none of this revision"),
        (raised(errors.HfHubHTTPError, WEIGHTS, 401), "the token is wrong, or none was given"),
        (raised(errors.LocalEntryNotFoundError), "the cache lacks a file"),
        (raised(errors.OfflineModeIsEnabled), "`hf download NAME --local-dir FOLDER`"),
    ],
)
def test_each_error_says_what_to_do(error, words, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    said = hub.failure(error)
    assert words.format(hub=constants.ENDPOINT) in said
    assert "hf auth login" in said or "HF_HUB_OFFLINE" in said
    assert "\n" not in said


def test_other_errors_are_none_of_the_hub():
    assert hub.failure(OSError("disk")) is None
    assert hub.failure(raised(errors.HfHubHTTPError, WEIGHTS, 500)) is None


def test_a_command_ends_with_these_words(world, tmp_path, capsys, monkeypatch):
    config = changed_config(world, tmp_path)

    def run(settings):
        raise raised(errors.GatedRepoError, WEIGHTS, 403)

    monkeypatch.setattr(rounds, "run_all", run)
    assert cli.main(["run", str(config)]) == cli.FAILED
    said = capsys.readouterr().err
    assert "google/gemma-2-2b-it: it is gated: accept its terms" in said
    assert f"goes on: pad-fast run {config}" in said
    assert said.count("\n") == 1


def test_a_model_that_is_not_in_the_cache_offline(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = changed_config(world, tmp_path)
    assert cli.main(["plan", str(config), "--teacher", "nowhere/at-all"]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert "HF_HUB_OFFLINE is set, and the cache lacks a file" in said


@pytest.mark.parametrize(
    ("kind", "revision"), [("models", None), ("models", "v1"), ("datasets", None)]
)
def test_what_cannot_be_asked_for_is_what_the_command_downloads(kind, revision, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (command,) = re.findall("`(hf download [^`]+)`", hub.problem(kind, "a/b", revision))
    asked = asked_of_the_hub(command)
    assert (asked["repo_id"], asked["local_dir"]) == ("a/b", "FOLDER")
    assert (f"{asked['repo_type']}s", asked["revision"]) == (kind, revision)
