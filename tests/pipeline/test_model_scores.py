"""Which implementation scores in a run, and how the run says so."""

from __future__ import annotations

import json

import pytest
import torch
from worlds import changed_config, run_config

from pad_fast import cli
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.generate import Sampler, generate
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score import model_scores
from pad_fast.pipeline.score.model_scores import ModelScores


# Triton's interpreter computes exp of the lowest float32 in NumPy, which warns.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_the_asked_implementation_scores(world):
    """Both implementations give the same scores, and each is recorded once."""
    model = Checkpoint("teacher", str(world / "teacher")).model
    recorded: list[str] = []
    found = {}
    for impl in ("torch", "triton"):
        scores = ModelScores(run_config(world), "mean", impl, recorded.append)
        found[impl] = (
            scores.rewards(model, [[7, 8]], [[[9], [10, 11]]])[0],
            scores.logps(model, [[7, 8]], [[[9], [10, 11]]])[0],
            scores.next_tokens(model, [[7, 8]], [9, 10])[0],
        )
    assert recorded == ["torch", "triton"]
    for ours, others in zip(found["torch"], found["triton"], strict=True):
        assert ours == pytest.approx(others, abs=1e-5)
    rewards, logps, next_tokens = found["torch"]
    assert rewards == pytest.approx([logps[0], logps[1] / 2])
    assert next_tokens[0] == pytest.approx(logps[0], abs=1e-5)


@pytest.mark.usefixtures("no_report")
def test_impl_reaches_everything_that_scores(world, tmp_path, monkeypatch):
    """Student, teacher and evaluation take the run's impl; the manifest names what it became."""
    asked: dict[str, set[str]] = {}

    def spied(function):
        def call(model, *args, impl, **options):
            asked.setdefault(str(model.name_or_path), set()).add(impl)
            return function(model, *args, impl=impl, **options)

        return call

    for name in ("score_responses", "next_token_logprobs"):
        monkeypatch.setattr(model_scores, name, spied(getattr(model_scores, name)))
    monkeypatch.setenv("PAD_FAST_IMPL", "triton")  # which "auto" would follow
    config = changed_config(world, tmp_path, num_generations=2, impl="torch")
    assert cli.main(["run", str(config)]) == 0
    run = tmp_path / "run"
    models = {str(world / "student"), str(world / "teacher"), str(run / "round-01" / "student")}
    assert asked == {path: {"torch"} for path in models}
    assert json.loads((run / "run.json").read_text())["implementations"] == ["torch"]


@pytest.mark.parametrize(
    ("dtype", "remedy"), [("float16", "bfloat16 or float32"), ("float32", "check its weights")]
)
def test_scores_that_are_not_finite_name_model_and_dtype(world, tmp_path, dtype, remedy):
    """Weights that float16 cannot hold, or that a training left as NaN."""
    broken, found = Checkpoint("teacher", str(world / "teacher"), dtype=dtype), []
    broken.model.lm_head.weight.data[9] = torch.nan
    scores, rows = ModelScores(run_config(world), "mean", "torch"), [{"prompt_ids": [7, 8]}]
    engine = TransformersEngine(broken, scores)
    for ask in (
        lambda: scores.rewards(broken.model, [[7, 8]], [[[9], [10, 11]]]),
        lambda: scores.logps(broken.model, [[7, 8]], [[[9], [10, 11]]]),
        lambda: scores.next_tokens(broken.model, [[7, 8]], [9, 10]),
        lambda: generate(engine, rows, Sampler(run_config(world), 2), 0, found.append),
        lambda: generate(engine, rows, Sampler(run_config(world), 0), 0, found.append),
    ):
        with pytest.raises(
            ValueError, match=rf"the model .*teacher in {dtype} gives .*not finite"
        ) as error:
            ask()
        assert remedy in str(error.value)
    assert not found


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_run_with_a_broken_model_stops_and_keeps_no_number(world, tmp_path, capsys, role):
    checkpoint = Checkpoint(role, str(world / role))
    checkpoint.model.model.norm.weight.data[0] = torch.nan
    checkpoint.model.save_pretrained(tmp_path / role)
    checkpoint.tokenizer.save_pretrained(tmp_path / role)
    config = changed_config(world, tmp_path, **{role: str(tmp_path / role)})
    for command in ("run", "doctor"):
        assert cli.main([command, str(config)]) == 2
        assert f"{role} in float32 gives" in capsys.readouterr().err
    kept = {path.parent.name for path in (tmp_path / "run").rglob("part-*.parquet")}
    assert kept <= {"samples"}


def test_a_token_that_a_model_excludes_is_no_error(world):
    """Logits of -inf exclude a token, as for the padding of a vocabulary."""
    model = Checkpoint("student", str(world / "student"))

    def exclude(module, inputs, output):
        output.logits[..., 0] = -torch.inf
        return output

    handle = model.model.register_forward_hook(exclude)
    engine = TransformersEngine(model, ModelScores(run_config(world), "mean", "torch"))
    prompt, sampler = {"prompt_ids": [7, 8]}, Sampler(run_config(world), 4)
    rows = generate(engine, [prompt], sampler, 0, lambda count: None)
    handle.remove()
    assert len(rows[0]["completion_ids"]) == 4
