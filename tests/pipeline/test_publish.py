"""Cards of a run's students and responses, and what is pushed where, without a network."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from commands import failing
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard, RepoUrl
from safetensors.torch import load_file

from pad_fast import cli
from pad_fast.files.own_files import read_json
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.dry_build import check_hub
from pad_fast.pipeline.hub import hub_name
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.publish import model_card, upload
from pad_fast.pipeline.publish.dataset_card import write_dataset
from pad_fast.pipeline.publish.model_card import metadata, update_card
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train.train_round import _card_note
from pad_fast.report.wording import RATER


def context(finished: Path, *flags: str, **names: str) -> RunContext:
    """The finished run; ``names`` replace settings that are folders and files in tests."""
    run = RunContext(parse_settings("run", [str(finished / "config.yaml"), *flags]))
    run.config = dataclasses.replace(run.config, **names)
    return run


HUB = {"student": "google/gemma-2-2b", "teacher": "google/gemma-2-9b-it", "prompts": "me/asked"}


def test_a_card_has_metadata_numbers_with_intervals_and_versions(finished):
    path = finished / "run" / "round-02" / "student" / "README.md"
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert {"pad", "preference-aligned-distillation", "pad-fast"} <= set(card.data.tags)
    assert card.data.metrics == ["accuracy", "kendall_tau"]
    # The models and prompts are folders and files of this machine.
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert str(finished) not in card.content
    assert card.text.lstrip().startswith("# student after PAD\n")
    found = read_json(finished / "run" / "evaluation" / "student-02.json")
    low, high = found["intervals"]["ppd_loss"]
    assert f"| {found['ppd_loss']:.3f} ({low:.3f} to {high:.3f}) |" in card.text
    numbers = card.text.split("## Evaluation")[1].split("## Versions")[0]
    assert re.findall(r"^\| (student before|after round 2|teacher) \|", numbers, re.M) == [
        "student before",
        "after round 2",
        "teacher",
    ]
    versions = read_json(finished / "run" / "run.json")["versions"]
    for name in ("pad-fast", "torch", "transformers"):
        assert f"| {name} | {versions[name]} |" in card.text
    headings = re.findall(r"^## (.*)", card.text, re.M)
    assert headings == ["Training", "Last measured", "Evaluation", "Versions", "Citation"]


def test_a_card_written_again_is_the_same(finished, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(finished / "run" / "round-01" / "student", folder)
    before = (folder / "README.md").read_text()
    update_card(context(finished), folder, "student-01")
    assert (folder / "README.md").read_text() == before
    (folder / "README.md").unlink()
    update_card(context(finished), folder, "student-01")
    assert not (folder / "README.md").exists()


def test_names_of_the_hub_are_in_the_metadata(finished):
    run = context(finished, **HUB, heldout="me/held-out", hub_dataset_id="me/responses")
    data = metadata(run, "student-02")
    assert data.base_model == "google/gemma-2-2b"
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["me/asked", "me/held-out", "me/responses"]
    (result,) = data.eval_results
    accuracy = read_json(finished / "run" / "evaluation" / "student-02.json")["greedy_accuracy"]
    assert (result.dataset_type, result.metric_type) == ("me/held-out", "accuracy")
    assert result.metric_value == pytest.approx(100 * accuracy, abs=0.005)
    # Results on a file of one's own are nothing that the Hub's tables could compare.
    assert metadata(context(finished, **HUB), "student-02").eval_results is None
    versions = [row for row in model_card._versions(run) if row[0] in ("student", "teacher")]
    assert versions == [["student", HUB["student"]], ["teacher", HUB["teacher"]]]


def test_files_are_no_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert hub_name("gpt2") == "gpt2"
    for source in (None, "mine", "./mine", "/models/mine", "prompts.jsonl", str(tmp_path)):
        assert hub_name(source) is None


class Api:
    """What would go to the Hub."""

    made: ClassVar[list[tuple]] = []
    folders: ClassVar[dict[str, Path]] = {}
    kept: Path

    def __init__(self, token=None):
        assert token == "hf_writer"

    def create_branch(self, name, *, branch, exist_ok):
        self.made.append(("branch", name, branch, exist_ok))

    def create_repo(self, name, *, private, exist_ok, repo_type="model"):
        self.made.append((repo_type, name, private, exist_ok))
        kind = "datasets/" if repo_type == "dataset" else ""
        return RepoUrl(f"https://huggingface.co/{kind}{name}")

    def upload_folder(
        self, *, repo_id, folder_path, commit_message, repo_type="model", ignore_patterns=(), **to
    ):
        target = self.kept / repo_id / (to.get("revision") or "")
        shutil.copytree(folder_path, target, ignore=shutil.ignore_patterns(*ignore_patterns))
        self.folders[repo_id] = target


@pytest.fixture
def api(monkeypatch, tmp_path):
    monkeypatch.setattr(upload, "HfApi", Api)
    monkeypatch.setattr(Api, "made", [])
    monkeypatch.setattr(Api, "folders", {})
    monkeypatch.setattr(Api, "kept", tmp_path / "hub", raising=False)
    return Api


PUSHED = ("--push_to_hub", "true", "--hub_model_id", "me/small", "--hub_token", "hf_writer")


def test_a_student_and_its_responses_are_pushed(finished, api, tmp_path):
    run = context(finished, *PUSHED, "--hub_private_repo", "true", "--hub_dataset_id", "me/asked")
    found = upload.push(run, run.folder.student(2))
    assert found == [
        "https://huggingface.co/me/small",
        "https://huggingface.co/datasets/me/asked",
    ]
    assert api.made == [
        ("model", "me/small", True, True),
        ("dataset", "me/asked", True, True),
    ]
    names = {path.name for path in api.folders["me/small"].iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"training_args.bin", "trainer_state.json"}
    folder = api.folders["me/asked"]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert str(finished).encode() not in path.read_bytes()
        assert b"hf_writer" not in path.read_bytes()


def test_a_branch_is_made_for_a_revision(finished, api):
    """The responses have no such branch: the setting is Trainer's, and of the model."""
    flags = ("--hub_revision", "second", "--hub_dataset_id", "me/asked")
    upload.push(context(finished, *PUSHED, *flags), finished / "run" / "round-02" / "student")
    assert ("branch", "me/small", "second", True) in api.made
    assert (api.kept / "me" / "small" / "second" / "config.json").is_file()
    assert (api.kept / "me" / "asked" / "README.md").is_file()


@pytest.mark.usefixtures("no_report")
def test_a_finished_run_is_pushed_later(finished, api, tmp_path, capsys, monkeypatch):
    """Train, look at the report, then push: the settings of the hub may change at any time."""
    asked = []
    monkeypatch.setattr("pad_fast.pipeline.hub.push_problem", asked.append)
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    assert "hub_model_id: needed with push_to_hub" in failing(
        capsys, "run", folder, "--push_to_hub", "true"
    )
    assert not asked
    given = (*PUSHED, "--hub_dataset_id", "me/asked", "--hub_dtype", "bfloat16")
    assert cli.main(["run", str(folder), *given]) == 0
    assert asked == ["hf_writer"]
    assert "pushed   https://huggingface.co/me/small" in capsys.readouterr().out
    card = ModelCard.load(api.folders["me/small"] / "README.md")
    assert card.data.datasets == ["me/asked"]
    assert card.text.lstrip().startswith("# small\n")
    assert (api.kept / "me" / "asked" / "responses").is_dir()
    trained = finished / "run" / "round-02" / "student" / "model.safetensors"
    kept = folder / "round-02" / "student" / "model.safetensors"
    assert kept.read_bytes() == trained.read_bytes()


@pytest.mark.parametrize(("wanted", "width"), [("bfloat16", 2), ("base", 4)])
def test_the_pushed_weights_have_the_data_type_that_is_asked_for(finished, api, wanted, width):
    """The run folder keeps what was trained, and all else is pushed as it is there."""
    student = finished / "run" / "round-02" / "student"
    before = {path.name: path.read_bytes() for path in student.iterdir()}
    upload.push(context(finished, *PUSHED, "--hub_dtype", wanted), student)
    folder = api.folders["me/small"]
    weights, trained = (load_file(each / "model.safetensors") for each in (folder, student))
    assert weights.keys() == trained.keys()
    for name, weight in weights.items():
        assert weight.element_size() == width
        torch.testing.assert_close(weight, trained[name].to(weight.dtype), rtol=0, atol=0)
    said = read_json(folder / "config.json")["dtype"]
    assert said == {2: "bfloat16", 4: "float32"}[width]
    for name in ("README.md", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (student / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == before.keys() - set(upload.KEPT_HERE)
    assert {path.name: path.read_bytes() for path in student.iterdir()} == before


def test_the_dataset_card_is_what_the_dataset_holds(finished, api, tmp_path):
    upload.push(context(finished, *PUSHED, "--hub_dataset_id", "me/asked"), finished / "student")
    folder = api.folders["me/asked"]
    card = DatasetCard.load(folder / "README.md")
    assert [found["config_name"] for found in card.data.configs] == ["heldout", "responses"]
    # datasets reads configs, splits and features from the card, as from the Hub.
    rows = load_dataset(str(folder), "responses", cache_dir=str(tmp_path / "cache"))
    assert set(rows) == {"round_01", "round_02"}
    own = read_rows(finished / "run" / "round-02" / "scores")
    assert rows["round_02"]["completions"][:] == [row["completions"] for row in own]
    assert rows["round_02"]["teacher_rewards"][:] == [row["teacher_rewards"] for row in own]
    infos = {info["config_name"]: info for info in card.data.dataset_info}
    names = [feature["name"] for feature in infos["responses"]["features"]]
    assert names == rows["round_01"].column_names
    assert not {"prompt_ids", "completion_ids", "scored_by"} & set(names)
    sizes = {split["name"]: split["num_examples"] for split in infos["responses"]["splits"]}
    assert sizes == {"round_01": 8, "round_02": 8}
    assert 'load_dataset("me/asked", "responses")' in card.text
    assert "scored by the teacher teacher" in card.text


def test_the_cards_of_given_responses_name_their_source_and_who_scored(
    finished, tmp_path, monkeypatch
):
    names = {"responses": "me/given", "heldout": "me/held-out", "hub_dataset_id": "me/scored"}
    run = context(finished, **{**HUB, "prompts": None, **names})
    run.__dict__["teacher"] = Checkpoint("teacher", HUB["teacher"])
    write_dataset(run, tmp_path)
    card = DatasetCard.load(tmp_path / "README.md")
    assert (
        "Groups of up to 3 responses to a prompt, those of me/given, scored by the teacher "
        "google/gemma-2-9b-it, and from round 2 on sampled from google/gemma-2-2b in training at "
        "temperature 1.0 and scored by the teacher google/gemma-2-9b-it, for"
    ) in card.text
    assert card.data.source_datasets == ["me/given", "me/held-out"]
    assert "its responses, up to 3 a prompt, are those of me/given, scored by" in _card_note(run, 1)
    manifest = {**run.folder.manifest(), "judge": RATER}
    monkeypatch.setattr(run.folder, "manifest", lambda: manifest)
    assert "those of me/given, with the scores that came with them." in _card_note(run, 1)
    assert _card_note(run, 2).endswith("and scored by the teacher google/gemma-2-9b-it.")


def test_without_a_name_for_them_responses_stay_here(finished, api):
    assert len(upload.push(context(finished, *PUSHED), finished / "student")) == 1
    assert [kind for kind, *_ in api.made] == ["model"]


@pytest.mark.parametrize(
    ("pushes", "dataset", "message"),
    [
        (False, "me/asked", "hub_dataset_id: needs push_to_hub"),
        (True, "me/small", "hub_dataset_id: must differ from hub_model_id"),
        (True, "a b", "hub_dataset_id: must be a name such as"),
        (False, None, "hub_dtype: needs push_to_hub: true, got 'base'"),
    ],
)
def test_wrong_names(pushes, dataset, message):
    args = SimpleNamespace(push_to_hub=pushes, hub_model_id="me/small", hub_token=None)
    with pytest.raises(ValueError, match=message):
        check_hub(args, dataset, "base" if dataset is None else "trained")
