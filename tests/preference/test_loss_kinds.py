"""A loss that is only an entry of the table of losses is found wherever losses are named."""

from __future__ import annotations

import pytest
import torch
from students import RENAMED, make_args, make_rows, trained
from torch import Tensor
from torch.autograd import gradcheck

from pad_fast import LinearPADLoss, PADLoss, linear_preference_loss
from pad_fast.losses import check_loss, preference_loss
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.preference import loss_kinds
from pad_fast.preference.loss_kinds import Kind, Loss, by_autograd
from pad_fast.preference.plackett_luce import RankingOptions
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import saturation

pytestmark = RENAMED

P, N, T, V, D = 2, 3, 4, 7, 5


def top_one(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """The cross-entropy of the distributions over the best response (ListNet), (G, n) -> (G,)."""
    wanted = (options.teacher_beta * teacher).softmax(1)
    return -(wanted * (options.beta * student).log_softmax(1)).sum(1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Loss:
    kind = Kind("toy", by_autograd(top_one), upper_bound=100.0)
    loss = Loss("toy", "toy (ListNet)", "match the best response", (kind,), ("teacher_beta",))
    monkeypatch.setitem(loss_kinds.LOSSES, "toy", loss)
    return loss


def rewards() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, P, N, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.usefixtures("toy")
def test_the_function_of_a_loss_needs_no_gradient_of_its_own() -> None:
    student, teacher = rewards()
    options = {"beta": 2.0, "teacher_beta": 3.0}
    got = preference_loss("toy", student, teacher, reduction="none", **options)
    torch.testing.assert_close(got, top_one(student, teacher, RankingOptions(2.0, 3.0)))
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = preference_loss("toy", student, teacher, mask=mask, reduction="none", **options)
    alone = preference_loss("toy", student[:1, ::2], teacher[:1, ::2], **options)
    torch.testing.assert_close(masked, torch.stack([alone, got[1]]))
    for groups in ({"mask": mask}, {"group_size": 2, "reduction": "sum"}):
        assert gradcheck(lambda s: preference_loss("toy", s, teacher, **options, **groups), student)  # noqa: B023 (called at once)


@pytest.mark.usefixtures("toy")
def test_a_loss_without_a_kernel_takes_pytorch_or_says_why() -> None:
    student, teacher = rewards()
    preference_loss("toy", student, teacher)
    with pytest.raises(ValueError, match=r'impl="triton" .* there is no kernel of exact toy'):
        preference_loss("toy", student, teacher, impl="triton")


@pytest.mark.usefixtures("toy")
def test_the_table_names_losses_and_options() -> None:
    check_loss("toy", {"beta": 1.0, "teacher_beta": 1.0, "group_size": 2})
    with pytest.raises(ValueError, match=r"loss must be one of ppd, vpd, .*, toy, got 'ipo'"):
        check_loss("ipo", {})
    with pytest.raises(ValueError, match=r"'toy' has no option 'seed'; it has beta, .*teacher"):
        check_loss("toy", {"seed": 1})
    assert "toy" in loss_kinds.all_kinds()


@pytest.mark.usefixtures("toy")
def test_modules_take_the_loss_by_name() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(P * N, T, D, generator=generator)
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    labels = torch.randint(V, (P * N, T), generator=generator)
    teacher = torch.randn(P, N, generator=generator)
    wanted, seen = linear_preference_loss(hidden, weight, labels, teacher, loss="toy")
    torch.testing.assert_close(wanted, preference_loss("toy", seen, teacher))
    from_logits = PADLoss("toy")(hidden @ weight.T, labels, teacher)
    torch.testing.assert_close(from_logits, wanted)
    torch.testing.assert_close(LinearPADLoss("toy")(hidden, weight, labels, teacher), wanted)
    with pytest.raises(ValueError, match="loss='toy' has no option 'method'"):
        PADLoss("toy", method="exact")


@pytest.mark.usefixtures("toy")
def test_the_trainer_takes_the_loss_by_name(tmp_path) -> None:
    args = make_args(tmp_path, loss="toy", teacher_beta=3.0)
    assert saturation(args) == pytest.approx(95.0)
    with pytest.raises(
        ValueError, match="divergence is an option of loss='ppd', and loss is 'toy'; got 'kl'"
    ):
        make_args(tmp_path, loss="toy", divergence="kl")
    with pytest.raises(ValueError, match=r"loss must be one of ppd, vpd, .*, toy, got 'ipo'"):
        make_args(tmp_path, loss="ipo")
    trainer = trained(tmp_path, make_rows(3), loss="toy", max_steps=1, logging_steps=1)
    assert trainer.state.log_history[0]["loss"] > 0
    assert "| loss | toy (ListNet) |" in trainer.card_body()


@pytest.mark.usefixtures("toy")
def test_a_run_takes_the_loss_by_name(tmp_path) -> None:
    given = ["--student=a", "--teacher=b", "--prompts=c", f"--output_dir={tmp_path}", "--loss=toy"]
    settings = parse_settings("run", given)
    assert settings.training["loss"] == "toy"
    assert settings.pad_config(tmp_path).loss == "toy"


def test_help_texts_name_every_loss_and_divergence() -> None:
    texts = {name: f.metadata.get("help") for name, f in PADConfig.__dataclass_fields__.items()}
    for loss in loss_kinds.LOSSES.values():
        assert f"{loss.name}: {loss.help}" in texts["loss"]
        for divergence in loss.divergences:
            assert divergence in texts["divergence"]
    assert "ppd, listnet, pro and lambda_loss only" in texts["teacher_beta"]


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_the_implementation_reaches_the_loss(impl, tmp_path, monkeypatch) -> None:
    from pad_fast.preference import op

    asked = []

    def resolve(impl, *args, own=op.resolve_impl, **options):
        asked.append(impl)
        return own(impl, *args, **options)

    monkeypatch.setattr(op, "resolve_impl", resolve)
    trained(tmp_path, make_rows(3), impl=impl, max_steps=1)
    assert asked == [impl]
