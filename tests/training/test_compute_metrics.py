"""What compute_metrics receives, and what becomes of its numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from students import RENAMED, make_args, make_model, make_rows

from pad_fast.losses import probabilistic_preference_loss
from pad_fast.models.scoring import score_responses
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED
ROWS = make_rows(7, seed=4)  # groups of different sizes, some with a response that is left out


@pytest.fixture
def evaluated(tmp_path):
    """The trainer, and what its compute_metrics received."""
    received = []

    def metrics(found):
        received.append(found)
        return {"worst": np.float32(np.nanmin(found.predictions)), "eval_named": 2}

    args = make_args(tmp_path, per_device_eval_batch_size=3)
    return PADTrainer(make_model(), args, None, ROWS, compute_metrics=metrics), received


def test_it_receives_the_rewards_of_the_whole_evaluation(evaluated):
    trainer, received = evaluated
    logged = trainer.evaluate()
    (found,) = received
    wanted = score_responses(
        trainer.model, [row["prompt_ids"] for row in ROWS], [row["completion_ids"] for row in ROWS]
    )
    width = max(len(row["completion_ids"]) for row in ROWS)
    assert found.predictions.shape == found.label_ids.shape == (7, width)
    for p, row in enumerate(ROWS):
        live = [reward is not None for reward in row["teacher_rewards"]]
        mask = np.array(live + [False] * (width - len(live)))
        assert found.inputs["mask"][p].tolist() == mask.tolist()
        assert np.isnan(found.predictions[p]).tolist() == (~mask).tolist()
        student = [value for value, alive in zip(wanted[p], live, strict=True) if alive]
        teacher = [reward for reward in row["teacher_rewards"] if reward is not None]
        assert found.predictions[p][mask] == pytest.approx(student, rel=1e-4)
        assert found.label_ids[p][mask] == pytest.approx(teacher)
        lengths = [len(ids) * alive for ids, alive in zip(row["completion_ids"], live, strict=True)]
        assert found.inputs["lengths"][p][: len(live)].tolist() == lengths
        ends = [r == "length" and a for r, a in zip(row["finish_reasons"], live, strict=True)]
        assert found.inputs["clipped"][p][: len(live)].tolist() == ends
        loss = probabilistic_preference_loss(
            torch.tensor([student]), torch.tensor([teacher]), beta=2.0
        )
        assert found.losses[p] == pytest.approx(loss.item(), rel=1e-3)
    assert not found.inputs["from_teacher"].any()
    assert logged["eval_worst"] == pytest.approx(min(min(group) for group in wanted), rel=1e-3)
    assert isinstance(logged["eval_worst"], float)
    assert logged["eval_named"] == 2
    assert logged["eval_loss"] == pytest.approx(found.losses.mean(), rel=1e-5)


def test_predictions_are_the_rewards(evaluated, tmp_path):
    trainer, received = evaluated
    output = trainer.predict(ROWS)
    np.testing.assert_array_equal(output.predictions, received[0].predictions)
    np.testing.assert_array_equal(output.label_ids, received[0].label_ids)
    assert output.metrics["test_worst"] == np.nanmin(output.predictions)
    plain = PADTrainer(make_model(), make_args(tmp_path), None, ROWS)
    np.testing.assert_allclose(plain.predict(ROWS).predictions, output.predictions, rtol=1e-4)
    plain.evaluate()
    assert plain._responses == []  # nothing is kept that nobody asked for


def test_the_best_checkpoint_may_be_that_of_ones_own_metric(tmp_path):
    seen = []

    def metrics(found):
        seen.append(float(np.nanmean(found.predictions)))
        return {"mean": seen[-1]}

    args = make_args(
        tmp_path,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="best",
        metric_for_best_model="mean",
        greater_is_better=True,
    )
    trainer = PADTrainer(make_model(), args, ROWS, ROWS, compute_metrics=metrics)
    trainer.train()
    assert trainer.state.best_metric == max(seen)


def test_what_it_returns_has_to_be_numbers_with_names(tmp_path):
    args = make_args(tmp_path)
    trainer = PADTrainer(make_model(), args, None, ROWS, compute_metrics=lambda found: 3.0)
    with pytest.raises(ValueError, match=r"compute_metrics must return a dictionary .* got 3.0"):
        trainer.evaluate()
