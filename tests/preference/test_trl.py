"""DPO and SimPO of two responses equal TRL's, where TRL is installed."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from listwise import rewards
from worlds import character_tokenizer, save_model

from pad_fast.losses import preference_loss
from pad_fast.models.scoring import score_responses

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_dpo_equals_trl(tmp_path) -> None:
    """A batch of TRL's own trainer, whose reference differs from its student."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    tokenizer = character_tokenizer()
    student, start = (
        AutoModelForCausalLM.from_pretrained(save_model(tmp_path / str(seed), seed))
        for seed in (0, 1)
    )
    texts = [("1+1=", "2", "3 or so"), ("name?", "Ada", "none"), ("go", "I go", "no")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in texts]
    trainer = DPOTrainer(
        model=student,
        ref_model=start,
        args=DPOConfig(
            output_dir=str(tmp_path / "out"),
            beta=0.7,
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=len(rows),
            disable_dropout=True,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    # The tokens are those of TRL's batch: the chosen responses, then the rejected ones.
    prompts, responses = [], []
    for ids, read, own in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        prompts.append(ids[(read == 1) & (own == 0)].tolist())
        responses.append([ids[own == 1].tolist()])
    student_rewards, anchor = (
        torch.tensor(score_responses(model, prompts, responses, normalize="sum"))
        .view(2, -1)
        .T.contiguous()
        for model in (student, start)
    )
    teacher = torch.tensor([[1.0, 0.0]]).expand(len(rows), 2)
    ours = preference_loss("dpo", student_rewards, teacher, anchor_rewards=anchor, beta=0.7)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    assert abs(theirs.item() - 0.6931) > 0.05  # the log-ratios are not 0


def test_simpo_equals_trl() -> None:
    from trl.experimental.cpo import CPOTrainer

    student, teacher = rewards(6, 2)
    order = teacher.argsort(1, descending=True)
    settings = SimpleNamespace(
        alpha=0.0,
        beta=2.5,
        simpo_gamma=0.8,
        loss_type="simpo",
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs, _, _ = CPOTrainer.cpo_loss(settings, *student.gather(1, order).T)
    ours = preference_loss("simpo", student, teacher, beta=2.5, gamma=0.8, reduction="none")
    torch.testing.assert_close(ours, theirs)


def simpo_rows() -> list[tuple[dict, dict]]:
    """The arguments of CPOConfig and of PADConfig in each row of the table that names both."""
    page = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(CPOConfig\(.*?\))` \| `(PADConfig\(.*?\))` \|", page, re.M)
    return [tuple(map(arguments, pair)) for pair in found]


def arguments(call: str) -> dict:
    words = ast.parse(call, mode="eval").body.keywords
    return {word.arg: ast.literal_eval(word.value) for word in words}


def test_the_rows_of_simpo_equal_trls_trainer(tmp_path) -> None:
    """One of them is what TRL does by default, likelihood included."""
    from transformers import AutoModelForCausalLM
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    rows = simpo_rows()
    defaults = {name: getattr(CPOConfig, name) for name in ("beta", "simpo_gamma", "cpo_alpha")}
    assert [theirs for theirs, _ in rows][1:] == [{"loss_type": "simpo", **defaults}]
    student = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "student", 0))
    pair = {"prompt": "1+1=", "chosen": "2, I think", "rejected": "3"}
    for theirs, ours in rows:
        args = CPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, **theirs)
        args.report_to, args.gradient_checkpointing = [], False
        trainer = CPOTrainer(
            student,
            args,
            train_dataset=Dataset.from_list([pair]),
            processing_class=(character_tokenizer()),
        )
        batch = next(iter(trainer.get_train_dataloader()))
        wanted, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
        responses = [
            batch[f"{name}_input_ids"][0][batch[f"{name}_labels"][0] != -100].tolist()
            for name in ("chosen", "rejected")
        ]
        prompt = batch["chosen_input_ids"][0][batch["chosen_labels"][0] == -100].tolist()
        rewards_of = torch.tensor(score_responses(student, [prompt], [responses]))
        found = preference_loss(ours.pop("loss"), rewards_of, torch.tensor([[1.0, 0.0]]), **ours)
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
