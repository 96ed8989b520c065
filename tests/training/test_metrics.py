"""The trainer's metrics, in training and in evaluation."""

import logging
import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from students import RENAMED, make_args, make_model, make_rows, trained

from pad_fast.evaluation import ranking_agreement
from pad_fast.losses import probabilistic_preference_loss
from pad_fast.models.scoring import score_responses
from pad_fast.training.config import PADConfig
from pad_fast.training.metrics import NAMES
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


def test_metrics(tmp_path):
    rows, model = make_rows(7, seed=1), make_model()
    trainer = PADTrainer(
        model,
        make_args(tmp_path, learning_rate=0.0, per_device_train_batch_size=2, logging_steps=4),
        rows,
        rows,
        callbacks=[],
    )
    trainer.train()
    line = trainer.state.log_history[0]
    metrics = trainer.evaluate()

    rewards = score_responses(
        model, [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows]
    )
    best, worst, margins, agreement = [], [], [], []
    losses, lengths, clipped, logps = [], [], [], []
    for row, group in zip(rows, rewards, strict=True):
        live = [i for i, reward in enumerate(row["teacher_rewards"]) if reward is not None]
        student, teacher = [group[i] for i in live], [row["teacher_rewards"][i] for i in live]
        best.append(student[teacher.index(max(teacher))])
        worst.append(student[teacher.index(min(teacher))])
        margins.append(best[-1] - worst[-1])
        agreement.append(ranking_agreement(torch.tensor([student]), torch.tensor([teacher])))
        losses.append(
            probabilistic_preference_loss(
                torch.tensor([student]), torch.tensor([teacher]), beta=2.0
            ).item()
        )
        lengths.append([len(row["completion_ids"][i]) for i in live])
        clipped.append([row["finish_reasons"][i] == "length" for i in live])
        logps.append(sum(student) / len(student))

    def mean(values):
        return sum(values) / len(values)

    wanted = {
        "loss": mean(losses),
        "rewards/chosen": mean(best),
        "rewards/rejected": mean(worst),
        "rewards/margins": mean(margins),
        "rewards/accuracies": mean([found["pair_accuracy"].item() for found in agreement]),
        "ranking/kendall_tau": mean([found["kendall_tau"].item() for found in agreement]),
        "ranking/top1": mean([found["top1"].item() for found in agreement]),
        "logps/mean": mean(logps),
        "logps/chosen": mean(best),
        "completions/mean_length": mean([mean(group) for group in lengths]),
        "completions/min_length": min(min(group) for group in lengths),
        "completions/max_length": max(max(group) for group in lengths),
        "completions/clipped_ratio": mean([mean(group) for group in clipped]),
        "loss/saturated": mean([loss > 0.95 * math.log(2) for loss in losses]),
    }
    assert set(wanted) == set(NAMES)
    for name, value in wanted.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-4), name
        # Trainer's own loss is a mean over steps, of which the last has one prompt.
        if name != "loss":
            assert line[name] == pytest.approx(value, rel=1e-4), name
    assert line["perf/tokens_per_second"] > 0
    assert "perf/tokens_per_second" not in metrics


def test_sampled_rankings_are_new_in_each_step_and_the_same_in_each_evaluation(
    tmp_path, monkeypatch
):
    rows = make_rows(1, seed=3)
    options = {"method": "sampled", "num_samples": 4, "learning_rate": 0.0, "logging_steps": 1}

    def losses(seed):
        args = make_args(tmp_path, num_train_epochs=3, seed=seed, **options)
        trainer = PADTrainer(make_model(), args, rows, rows)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        log = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert trainer.evaluate()["eval_loss"] == before
        with monkeypatch.context() as patch:
            patch.setattr(PADConfig, "process_index", 1)
            return [before, *log, trainer.evaluate()["eval_loss"]]  # the last on another rank

    first = losses(0)
    assert len({round(loss, 4) for loss in first}) == 5
    assert not set(losses(1)) & set(first)


def test_evaluation_during_training_and_several_sets(tmp_path):
    rows = make_rows(6)
    args = make_args(
        tmp_path, per_device_train_batch_size=3, eval_strategy="epoch", num_train_epochs=2
    )
    trainer = PADTrainer(make_model(), args, rows, {"easy": rows[:2], "hard": rows[2:]})
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_easy_loss" in line]
    assert len(lines) == 2
    assert lines[1]["eval_easy_loss"] < lines[0]["eval_easy_loss"]
    assert any("eval_hard_ranking/kendall_tau" in line for line in trainer.state.log_history)


def test_datasets_that_are_given_later(tmp_path):
    rows, later = make_rows(4), make_rows(6, seed=5)
    trainer = PADTrainer(
        make_model(), make_args(tmp_path, per_device_eval_batch_size=4), rows, later
    )
    wanted = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(later)["eval_loss"] == wanted
    assert trainer.evaluate(Dataset.from_list(later))["eval_loss"] == wanted
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == wanted  # prepared before
    assert trainer.evaluate(DatasetDict(a=Dataset.from_list(later)))["eval_a_loss"] == wanted
    assert trainer.predict(later).metrics["test_loss"] == wanted
    with pytest.raises(ValueError, match="row 1: teacher_rewards must be"):
        trainer.evaluate([rows[0], {**rows[0], "teacher_rewards": 1.0}])
    splits = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(later))
    with pytest.raises(
        ValueError, match="train_dataset must be one dataset, got several: 'train', 'test'"
    ):
        PADTrainer(make_model(), make_args(tmp_path), splits)


def far_apart(rows):
    """The rows with rewards of a teacher that is certain of its ranking."""
    for row in rows:
        row["teacher_rewards"] = [
            None if reward is None else 10.0 * i for i, reward in enumerate(row["teacher_rewards"])
        ]
    return rows


@pytest.mark.parametrize("most", [None, 24], ids=["whole", "slices"])
def test_the_saturated_share_is_that_of_the_loss_of_rankings(tmp_path, most, caplog):
    """A likelihood adds nats to what is trained, a weight divides it, and neither saturates."""
    shares = {"beta": 0.01, "teacher_beta": 0.01}, {"beta": 100.0}
    added = {"likelihood_weight": 100.0, "preference_weight": 0.5}
    options = {"learning_rate": 0.0, "logging_steps": 1, "max_tokens_per_step": most}
    rows = far_apart(make_rows(6))
    single = {**rows[0], "teacher_rewards": [1.0] + [None] * (len(rows[0]["completion_ids"]) - 1)}
    found = []
    for scale in shares:
        log = [
            trained(tmp_path, data, **scale, **more, **options).state.log_history[0]
            for data, more in ((rows, {}), ([*rows, single], added))
        ]
        assert log[0]["loss/saturated"] == log[1]["loss/saturated"]
        assert log[1]["loss"] > 10 * log[0]["loss"]
        found.append(log[0]["loss/saturated"])
        assert ("hardly overlap" in caplog.text) == (found[-1] > 0.5)
    assert found[0] == 0.0
    assert found[1] > 0.5
    alone = {"preference_weight": 0.0, "likelihood_weight": 1.0, "beta": 100.0}
    assert "loss/saturated" not in trained(tmp_path, rows, **alone, **options).state.log_history[0]


def test_a_saturated_loss_is_logged_once(tmp_path, caplog):
    rows = far_apart(make_rows(6))
    options = {
        "per_device_train_batch_size": 3,
        "logging_steps": 1,
        "beta": 100.0,
        "learning_rate": 0.0,
    }
    with caplog.at_level(logging.WARNING, "pad_fast"):
        trainer = trained(tmp_path, rows, num_train_epochs=2, **options)
    assert trainer.state.log_history[0]["loss/saturated"] > 0.5
    assert caplog.text.count("smaller teacher_beta") == 1
    assert (
        "loss/saturated"
        not in trained(tmp_path, rows, divergence="kl", **options).state.log_history[0]
    )
