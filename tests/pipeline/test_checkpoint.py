"""Whether two models read a conversation as the same ids, and whether they are the same model."""

from __future__ import annotations

import json
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import worlds
from made_tokenizers import chat_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pad_fast.doctor import engine_difference
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.costs import measured, recording
from pad_fast.pipeline.ranks import ALONE
from pad_fast.pipeline.weights import weights_digest
from pad_fast.report.costs import read_costs

WITH_BOS = "{{ bos_token }}" + worlds.TEMPLATE


def pair(
    folder: Path, change: Callable[[Path], None], template: str = WITH_BOS
) -> tuple[Checkpoint, Checkpoint]:
    """Two models with one tokenizer, of which the second's files are changed."""
    checkpoints = []
    for role in ("student", "teacher"):
        tokenizer = chat_tokenizer("byte-level", template)
        tokenizer.pad_token = "<|system|>"
        worlds.save_model(folder / role, seed=0, tokenizer=tokenizer)
        checkpoints.append(Checkpoint(role, str(folder / role)))
    change(folder / "teacher")
    return checkpoints[0], checkpoints[1]


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return change


TRUNCATION = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}


@pytest.mark.parametrize("encoded_first", [False, True])
@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda folder: None, True),
        (edit("tokenizer.json", truncation=TRUNCATION), True),
        (edit("tokenizer.json", post_processor=None), True),
        (edit("tokenizer_config.json", pad_token="<|user|>"), True),  # no template writes it
        (edit("tokenizer_config.json", bos_token="<|user|>"), False),
        (edit("tokenizer_config.json", eos_token="<|user|>"), False),
        (edit("generation_config.json", eos_token_id=[2, 3]), False),
        (edit("tokenizer.json", normalizer={"type": "Lowercase"}), False),
        (lambda folder: (folder / "chat_template.jinja").write_text(worlds.TEMPLATE), False),
    ],
)
def test_same_tokenizer(tmp_path, change, same, encoded_first):
    student, teacher = pair(tmp_path, change)
    if encoded_first:  # which takes truncation from the tokenizer
        for checkpoint in (student, teacher):
            checkpoint.prompt_ids([{"role": "user", "content": "Hello"}])
    assert teacher.same_tokenizer(student) is same
    assert student.same_tokenizer(teacher) is same


def test_a_token_that_the_template_does_not_write_may_differ(tmp_path):
    change = edit("tokenizer_config.json", bos_token="<|user|>")
    student, teacher = pair(tmp_path, change, worlds.TEMPLATE)
    assert teacher.same_tokenizer(student)


def test_prompts_are_not_truncated(tmp_path):
    student, teacher = pair(tmp_path, edit("tokenizer.json", truncation=TRUNCATION))
    messages = [{"role": "user", "content": "Hello there, two and two is four"}]
    for said in (messages, [{"role": "user", "content": "Hello there, two <|user|> is four"}]):
        assert teacher.prompt_ids(said) == student.prompt_ids(said)
        assert len(teacher.prompt_ids(said)) > 5
    assert isinstance(teacher.tokenizer, PreTrainedTokenizerFast)


def test_a_model_is_the_same_under_another_card(tmp_path):
    """A run writes numbers into the card of a student that was asked already."""
    worlds.save_model(tmp_path, seed=0, tokenizer=chat_tokenizer("byte-level", WITH_BOS))
    model = Checkpoint("student", str(tmp_path))
    before = model.fingerprint()
    (tmp_path / "README.md").write_text("# Right in 57% of the answers")
    assert model.fingerprint() == before
    edit("config.json", rope_theta=500.0)(tmp_path)
    assert model.fingerprint() != before


def test_the_time_of_a_tokenizer_is_that_of_its_model(tmp_path, monkeypatch):
    """Whatever work asks for it first."""
    worlds.save_model(tmp_path / "model", seed=0, tokenizer=chat_tokenizer("byte-level", WITH_BOS))
    model, own = Checkpoint("teacher", str(tmp_path / "model")), AutoTokenizer.from_pretrained
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 * len(slept))
    monkeypatch.setattr(
        AutoTokenizer,
        "from_pretrained",
        lambda *given, **named: slept.append(1) or own(*given, **named),
    )
    with recording(tmp_path, ALONE), measured("score", "response") as work:
        _ = model.chat, model.model
        work.add(1)
    found = {row["title"]: row["seconds"] for row in read_costs(tmp_path)}
    assert found == {"load teacher": 100.0, "score": 0.0}


def test_what_is_freed_is_loaded_anew(tmp_path):
    """A run keeps a checkpoint for each of its models, and the weights of one at a time."""
    tokenizer = chat_tokenizer("byte-level", WITH_BOS)
    worlds.save_model(tmp_path, seed=0, tokenizer=tokenizer)
    model = Checkpoint("student", str(tmp_path))
    said = [{"role": "user", "content": "Hello"}]
    ids, known = model.prompt_ids(said), model.known_ids
    held = [weakref.ref(one) for one in (model.tokenizer, model.model)]
    model.free()
    assert [one() for one in held] == [None, None]
    assert (model.prompt_ids(said), model.known_ids) == (ids, known)


def test_weights_that_end_early_are_named_by_an_error_without_a_text(tmp_path, monkeypatch):
    worlds.save_model(tmp_path, seed=0, tokenizer=chat_tokenizer("byte-level", WITH_BOS))
    model = Checkpoint("student", str(tmp_path))

    def ends(*given: object, **named: object) -> None:
        raise EOFError

    monkeypatch.setattr(model.model_class, "from_pretrained", ends)
    with pytest.raises(ValueError, match=r"the weights of .* are damaged \(EOFError\); copy"):
        _ = model.model


def test_a_served_model_needs_its_weights_only_to_be_loaded_here(world, tmp_path):
    no_weights = shutil.ignore_patterns("*.safetensors")
    path = shutil.copytree(world / "teacher", tmp_path / "teacher", ignore=no_weights)
    with pytest.raises(ValueError, match=r"teacher: the folder .* holds no weights"):
        _ = Checkpoint("teacher", str(path)).config
    served = Checkpoint("teacher", str(path), served=True)
    assert served.prompt_ids([{"role": "user", "content": "2"}])
    with pytest.raises(ValueError, match=r"teacher: the folder .* holds no weights"):
        served.load("cpu")
    with pytest.raises(ValueError, match=r"score_cache: .* holds no weights"):
        weights_digest(str(path), served.config)
    found = weights_digest(str(path), served.config, served=True)
    moved = shutil.copytree(path, tmp_path / "other" / "teacher")
    assert weights_digest(str(moved), served.config, served=True) != found
    whole = str(world / "teacher")
    assert weights_digest(whole, served.config, served=True) == weights_digest(whole, served.config)
    assert "not in a folder" in engine_difference._too_large(served)
