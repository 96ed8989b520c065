"""The doctor against worlds made sick on purpose: each of its verdicts must be able to fail, and a healthy world must pass."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import worlds
from transformers import AutoModelForCausalLM, GenerationConfig
from worlds import contents

from pad_fast import cli
from pad_fast.doctor import checks
from pad_fast.doctor.checks import Finding
from pad_fast.doctor.command import DoctorOptions, examine
from pad_fast.pipeline.arguments import parse_with
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.score import scorer
from pad_fast.training.config import PADConfig

PROMPTS = 8


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    worlds.write_config(folder)
    return folder


def config(world: Path, folder: Path, **changes: object) -> Path:
    given = {role: str(world / role) for role in ("student", "teacher")}
    given |= {
        "prompts": str(world / "train.jsonl"),
        "heldout": str(world / "heldout.jsonl"),
        "max_new_tokens": 24,
    }
    return worlds.write_config(folder, **{**given, **changes}, models=False)


def findings(path: Path) -> dict[str, Finding]:
    settings, options = parse_with(
        "doctor", [str(path), "--num_prompts", str(PROMPTS)], DoctorOptions
    )
    return {finding.check: finding for finding in examine(settings, options.num_prompts)}


FILES = {"eos_token_id", "generation_config", "chat_template", "enable_thinking"}
KNOWN = {
    field.name for kind in (RunConfig, PADConfig) for field in dataclasses.fields(kind)
} | FILES


def told(finding: Finding, verdict: str, *words: str) -> None:
    """The verdict, with what to do about it where it is not ok; whatever looks like a setting is one."""
    assert finding.verdict == verdict, finding
    assert bool(finding.advice) == (verdict != "ok")
    assert set(re.findall(r"[a-z]+(?:_[a-z]+)+", finding.advice)) <= KNOWN
    for word in words:
        assert word in finding.advice


def edited(world: Path, folder: Path, role: str, change) -> Path:
    """A copy of a model of the world, after `change(model)`."""
    model = AutoModelForCausalLM.from_pretrained(world / role)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    worlds.character_tokenizer().save_pretrained(folder)
    return folder


# the command


@pytest.mark.parametrize("started", [False, True])
def test_a_run_behaves_as_if_there_had_been_no_doctor(world, tmp_path, capsys, started):
    path = config(world, tmp_path, max_new_tokens=6, temperature=1.3)
    if started:
        assert cli.main(["sample", str(path)]) == 0
    before = contents(tmp_path)
    assert cli.main(["doctor", str(path), "--num_prompts", "4"]) in (0, 3)
    assert contents(tmp_path) == before
    assert "end of response" in capsys.readouterr().out


def test_a_healthy_world_is_ok(tmp_path, capsys):
    tiny = Path(checks.__file__).parents[1] / "tiny_world" / "tiny.yaml"
    arguments = [
        "doctor",
        str(tiny),
        "--num_prompts",
        "6",
        "--num_generations",
        "4",
        "--disable_tqdm",
        "true",
        "--json",
    ]
    arguments += ["--output_dir", str(tmp_path / "run"), "--mcq_weight", "0.5"]
    assert cli.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] in ("ok", "look")
    verdicts = {finding["check"]: finding["verdict"] for finding in said["findings"]}
    assert len(verdicts) == 12
    assert {
        verdicts[name]
        for name in (
            "student's template",
            "teacher's template",
            "end of response",
            "clipped",
            "letters",
        )
    } == {"ok"}
    assert not (tmp_path / "run").exists()


def test_exit_codes(world, tmp_path, capsys):
    path = config(world, tmp_path, max_new_tokens=1)  # all are clipped
    assert cli.main(["doctor", str(path), "--num_prompts", "2"]) == 3
    output = capsys.readouterr().out
    assert "problem" in output
    assert "raise max_new_tokens" in output
    assert cli.main(["doctor", str(path), "--num_prompts", "1"]) == 2
    assert "num_prompts: must be 2 or more, got 1" in capsys.readouterr().err
    assert cli.main(["doctor", str(path), "--num_prompt", "3"]) == 2
    assert "did you mean --num_prompts?" in capsys.readouterr().err
    path.write_text(
        path.read_text() + "num_prompts: 4\n"
    )  # a flag of the command, and no setting of a run
    assert cli.main(["doctor", str(path)]) == 2
    assert "unknown key 'num_prompts'" in capsys.readouterr().err


def test_the_seed_chooses(world, tmp_path):
    path = config(world, tmp_path)
    first, again = findings(path), findings(path)
    assert first == again
    assert findings(config(world, tmp_path, seed=8)) != first


# sick worlds


def retold(world: Path, folder: Path, template: str) -> Path:
    """The student under another chat template."""
    AutoModelForCausalLM.from_pretrained(world / "student").save_pretrained(folder)
    worlds.character_tokenizer(template=template).save_pretrained(folder)
    return folder


def test_template_that_rewrites_the_prompt(world, tmp_path):
    # as templates of reasoning models do: what the generation prompt opens is gone once the answer is there
    opening = worlds.TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>think{% endif %}")
    student = retold(world, tmp_path / "student", opening)
    found = findings(config(world, tmp_path, student=str(student)))
    told(
        found["student's template"],
        "problem",
        "chat_template_kwargs",
        "student's chat_template.jinja",
    )
    assert found["student's template"].numbers == {
        "rewritten": PROMPTS,
        "merged": 0,
        "prompts": PROMPTS,
    }
    told(found["teacher's template"], "ok")


def test_template_that_refuses_an_answer(world, tmp_path):
    refusing = (
        "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        + worlds.TEMPLATE
    )
    student = Checkpoint("student", str(retold(world, tmp_path / "student", refusing)))
    rows = [{"prompt": [{"role": "user", "content": "1+1=?"}], "completions": ["2"]}]
    told(checks.template(student, rows), "problem", "chat_template.jinja")


def test_template_at_whose_border_tokens_merge():
    class Student:
        """Its template ends in a newline, and the tokenizer joins two of them."""

        role = "student"
        ids = {"a": 0, "\n": 1, "\n\n": 2}  # noqa: RUF012

        def rendered(self, messages, *, tokenize, return_dict=False, add_generation_prompt=False):
            text = "".join(
                message["content"] + "\n" * (message["role"] == "user") for message in messages
            )
            return {"input_ids": [0, 2, 0] if text == "a\n\na" else [0, 1]} if tokenize else text

        def prompt_ids(self, messages):
            return self.rendered(messages, tokenize=True)["input_ids"]

    row = {"prompt": [{"role": "user", "content": "a"}], "completions": ["\na"]}
    told(checks.template(Student(), [row]), "look", "generation prompt")
    told(checks.template(Student(), [{**row, "completions": ["a"]}]), "ok")


def test_student_that_never_ends(world, tmp_path):
    def never(model) -> None:
        model.lm_head.weight *= 4000  # every step is all but certain
        model.lm_head.weight[model.config.eos_token_id] = 0

    found = findings(
        config(world, tmp_path, student=str(edited(world, tmp_path / "student", "student", never)))
    )
    told(found["end of response"], "problem", "max_new_tokens", "generation_config.json")
    told(found["clipped"], "problem", "max_new_tokens", "mask_truncated_completions")
    told(found["repeated"], "problem", "temperature", "num_generations")


def test_template_whose_end_of_turn_ends_nothing(world, tmp_path):
    def change(model) -> None:
        model.config.eos_token_id = 0
        model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)

    student = edited(world, tmp_path / "student", "student", change)
    tokenizer = worlds.character_tokenizer()
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(student)
    found = findings(config(world, tmp_path, student=str(student)))
    told(found["end of response"], "problem", "add 1 to eos_token_id")


def test_constant_rewards(world, tmp_path):
    teacher = edited(
        world, tmp_path / "teacher", "teacher", lambda model: model.lm_head.weight.zero_()
    )  # log 1/V for every token
    found = findings(config(world, tmp_path, teacher=str(teacher), mcq_style="none"))
    told(found["reward spread"], "problem", "teacher_beta", "mcq_weight")
    assert found["reward spread"].numbers["share"] == 1.0
    told(found["agreement"], "problem", "reward spread")
    told(found["position bias"], "ok")
    # and where the choice differs, the reward does
    told(findings(config(world, tmp_path, teacher=str(world / "teacher")))["reward spread"], "ok")


def test_rewards_that_are_lengths(world, tmp_path):
    teacher = edited(
        world, tmp_path / "teacher", "teacher", lambda model: model.lm_head.weight.zero_()
    )
    found = findings(
        config(
            world,
            tmp_path,
            teacher=str(teacher),
            mcq_style="none",
            normalize="sum",
            max_new_tokens=60,
        )
    )
    told(found["length"], "problem", "shorter", "mcq_weight", "normalize: mean")
    assert found["length"].numbers["kendall_tau"] < -0.9


def test_teacher_that_is_the_student(world, tmp_path):
    found = findings(config(world, tmp_path, teacher=str(world / "student"), mcq_style="none"))
    told(found["agreement"], "problem", "stronger teacher")
    assert found["agreement"].numbers["kendall_tau"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("both", "first", "verdict"),
    [(True, 0.95, "problem"), (True, 0.65, "look"), (False, 0.65, "problem"), (True, 0.55, "ok")],
)
def test_teacher_that_likes_a_letter(world, tmp_path, monkeypatch, both, first, verdict):
    def stub(model, prompts, tokens, **options):
        # two letters in one form each; this tokenizer has none with a space before it
        assert len(tokens) == 2
        return [torch.tensor([first, 1 - first]).mul(0.9).log().tolist() for _ in prompts]

    monkeypatch.setattr(scorer, "next_token_logprobs", stub)
    found = findings(config(world, tmp_path, mcq_both_orders=both))
    told(
        found["position bias"],
        verdict,
        *(() if verdict == "ok" else ("mcq_weight", "mcq_template")),
    )
    assert ("mcq_both_orders" in found["position bias"].advice) == (not both)
    assert found["position bias"].numbers["mean"] == pytest.approx(first - 0.5, abs=1e-6)
    told(found["letters"], "ok")


@pytest.mark.parametrize(("mass", "verdict"), [(0.01, "problem"), (0.3, "look"), (0.9, "ok")])
def test_teacher_that_does_not_answer_with_a_letter(world, tmp_path, monkeypatch, mass, verdict):
    monkeypatch.setattr(
        scorer,
        "next_token_logprobs",
        lambda model, prompts, tokens, **_: (
            [torch.full((2,), mass / 2).log().tolist()] * len(prompts)
        ),
    )
    told(
        findings(config(world, tmp_path))["letters"],
        verdict,
        *(() if verdict == "ok" else ("mcq_template", "mcq_style")),
    )


def test_teacher_whose_window_is_too_short(world, tmp_path):
    teacher = worlds.save_model(tmp_path / "teacher", seed=1, window=40)
    found = findings(config(world, tmp_path, teacher=str(teacher)))
    told(found["position bias"], "problem", "max_new_tokens", "mcq_style")
    told(found["unscored"], "ok")
    # a teacher that needs more tokens for a response than the student: its letters are spelled out
    masked = [{"teacher_rewards": [None, -1.0, -1.2, -1.3]}, {"teacher_rewards": [-1.0] * 4}]
    told(checks.masked(masked), "look", "max_new_tokens")
    told(checks.masked([{"teacher_rewards": [None, None, -1.0, -1.0]}]), "problem")


# limits, on rows made by hand


def rows(student: list[list[float]], teacher: list[list[float | None]]) -> list[dict]:
    return [
        {"student_rewards": s, "teacher_rewards": t} for s, t in zip(student, teacher, strict=True)
    ]


@pytest.mark.parametrize(("beta", "verdict"), [(0.01, "ok"), (100.0, "problem")])
def test_saturated_loss(world, tmp_path, beta, verdict):
    settings, _ = parse_with("doctor", [str(config(world, tmp_path, beta=beta))], DoctorOptions)
    training = settings.pad_config(tmp_path / "x")
    opposite = rows([[0.0, 1.0, 2.0]] * 3, [[2.0, 1.0, 0.0]] * 3)
    told(
        checks.saturated(opposite, training),
        verdict,
        *(() if verdict == "ok" else ("teacher_beta", "divergence: kl", "mcq_floor")),
    )
    unending = dataclasses.replace(settings, training=settings.training | {"divergence": "kl"})
    told(checks.saturated(opposite, unending.pad_config(tmp_path / "x")), "ok")


def test_opposite_rankings_and_lone_responses(world, tmp_path):
    told(checks.agreement(rows([[0.0, 1.0, 2.0]] * 4, [[2.0, 1.0, 0.0]] * 4)), "look", "normalize")
    told(
        checks.agreement(rows([[0.0, 1.0, 2.0]] * 2, [[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])), "ok"
    )  # two groups prove nothing
    settings, _ = parse_with("doctor", [str(config(world, tmp_path))], DoctorOptions)
    told(
        checks.flat_groups(rows([[0.0, 1.0]], [[None, 1.0]]), settings.pad_config(tmp_path / "x")),
        "problem",
        "max_new_tokens",
    )
    told(
        checks.length(
            [{"completion_ids": [[1], [1, 2]], "teacher_rewards": [1.0, 1.0]}],
            settings.run,
            settings.pad_config(tmp_path / "x"),
        ),
        "ok",
    )


@pytest.mark.parametrize(("value", "verdict"), [(0.0, "ok"), (0.1, "look"), (0.5, "problem")])
def test_limits_belong_to_the_worse_verdict(value, verdict):
    assert checks.grade(value, 0.1, 0.5) == verdict
