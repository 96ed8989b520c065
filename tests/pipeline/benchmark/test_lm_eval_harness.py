"""GSM8K by lm-eval itself, and by our own module, which agrees with it."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark_files
import pytest
import worlds
import yaml

from pad_fast.evaluation.benchmarks import gsm8k
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.pipeline.benchmark import lm_eval_harness
from pad_fast.pipeline.benchmark.answering import Answering, answers_of
from pad_fast.pipeline.benchmark.asking import Asking
from pad_fast.pipeline.benchmark.harness import harness_for
from pad_fast.pipeline.benchmark.lm_eval_harness import run_lm_eval
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores


def test_who_scores(monkeypatch):
    for there, servers, auto in ((True, (), "lm_eval"), (True, ("u",), "own"), (False, (), "own")):
        monkeypatch.setattr(
            "pad_fast.pipeline.benchmark.harness.find_spec",
            lambda name, there=there: object() if there else None,
        )
        assert harness_for("auto", servers) == auto
        assert harness_for("own", servers) == "own"
        if not there:
            with pytest.raises(
                ValueError, match=r'in a clone of pad-fast, pip install "\.\[eval\]"'
            ):
                harness_for("lm_eval", servers)
        elif servers:
            with pytest.raises(ValueError, match="leave out server"):
                harness_for("lm_eval", servers)
    with pytest.raises(ValueError, match="benchmark_harness: must be one of"):
        harness_for("both", ())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_our_module_agrees_with_lm_eval(tmp_path):
    """The same prompts and generations, the same verdicts, shares and standard errors."""
    pytest.importorskip("lm_eval")
    path = worlds.save_model(tmp_path / "student", 0, window=512)
    checkpoint = Checkpoint("model", str(path), dtype="float32")
    # A model that answers some: the solution is what it says to the first problem.
    problems = benchmark_files.read_questions(tmp_path, "gsm8k")
    asking = Asking(
        BENCHMARKS["gsm8k"],
        max_new_tokens=12,
        shots=problems[:1],
        suffix=" Think.",
        system_prompt="Be brief.",
    )
    found = run_lm_eval(checkpoint, asking, problems, tmp_path / "lm_eval")
    samples = [json.loads(line) for line in (tmp_path / "lm_eval/samples.jsonl").open()]

    config = worlds.run_config(tmp_path)
    engine = TransformersEngine(checkpoint, ModelScores(config, "mean"))
    answering = Answering(engine, asking, tmp_path / "shards", 2, quiet=True)
    own = answers_of(asking, problems, answering.answer(problems, ""), len)
    assert [answer.turns for answer in own] == [answer.turns for answer in found.answers]

    pairs = [(answer.turns[0], answer.question.solution) for answer in found.answers]
    shares = gsm8k.shares(pairs)
    assert shares == found.shares
    for name, share in shares.items():
        assert share.standard_error == pytest.approx(found.errors[name])
        theirs = [bool(s["exact_match"]) for s in samples if s["filter"] == name]
        assert [gsm8k.is_right(*pair, name) for pair in pairs] == theirs
    # A second call takes the responses from where the first one kept them.
    assert run_lm_eval(checkpoint, asking, problems, tmp_path / "lm_eval").answers[0].turns


def test_the_hubs_problems_are_asked_by_the_task_as_it_is(tmp_path):
    """Only limits and suffix differ, so that numbers compare with published ones."""
    lm_eval = pytest.importorskip("lm_eval")
    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    theirs = yaml.safe_load(path.read_text())
    asking = Asking(BENCHMARKS["gsm8k"], from_hub=True)
    found = lm_eval_harness._task(asking, [], tmp_path)
    changed = {name for name in theirs if found.get(name) != theirs[name]}
    assert changed == {"tag", "generation_kwargs"}
    assert found.keys() <= theirs.keys()
    assert found["generation_kwargs"] == {**theirs["generation_kwargs"], "max_gen_toks": 256}
    assert not list(tmp_path.iterdir())
