"""The model card of a trained student: its settings, its last metrics, and whom to cite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training.config import PADConfig

TAGS = ("pad", "preference-aligned-distillation", "distillation")
SHOWN = (
    "group_size",
    "group_reduction",
    "normalize",
    "anchor",
    "temperature",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "max_length",
)
LIKELIHOOD = ("preference_weight", "likelihood_weight", "likelihood_on")
MEASURED = ("loss", "ranking/kendall_tau", "ranking/top1", "rewards/margins", "logps/mean")
PAD = """trained by Preference-Aligned Distillation
([PAD](https://arxiv.org/abs/2502.14272)) with `pad_fast.PADTrainer`: its distribution over the
rankings of several responses to a prompt was brought towards that of a teacher's rewards."""
OTHER = """trained by {loss} with `pad_fast.PADTrainer`, on a teacher's rewards of several
responses to a prompt."""
CITATION = """\
@inproceedings{gu-etal-2025-capturing,
    title = "Capturing Nuanced Preferences: \
Preference-Aligned Distillation for Small Language Models",
    author = "Gu, Yanggan and Li, Junzhuo and Huang, Sirui and \
Zou, Xin and Li, Zhenghua and Hu, Xuming",
    booktitle = "Findings of the Association for Computational Linguistics: ACL 2025",
    year = "2025",
    url = "https://aclanthology.org/2025.findings-acl.822/",
    pages = "15959--15973",
}"""


def card_body(
    args: PADConfig, base: str | None, history: Sequence[dict[str, Any]], note: str = ""
) -> str:
    """The card's text in Markdown, without metadata.

    Args:
        args: the training's arguments.
        base: the name of the model that was trained, on the Hugging Face Hub.
        history: the trainer's log.
        note: a sentence to add to the description.
    """
    student = f"[{base}](https://huggingface.co/{base})" if base else "A causal language model"
    loss = LOSSES[args.loss]
    own = [name for name in (*loss.own_options, *SHOWN) if name != "seed"]
    own += LIKELIHOOD if loss.adds_likelihood(args.likelihood_weight) else []
    settings = {"loss": loss.title, **({"beta": args.beta} if loss.has_beta else {})}
    settings |= {name: getattr(args, name) for name in own}
    settings["prompts a step"] = (
        args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    rows = "".join(
        f"| {name} | {value} |\n" for name, value in settings.items() if value not in (None, -1)
    )
    how = PAD if args.loss in ("ppd", "vpd") else OTHER.format(loss=loss.title)
    text = f"""
# {Path(str(args.output_dir)).name}

{student}, {how} {note}

## Training

| setting | value |
| --- | --- |
{rows}"""
    found = {
        prefix + name: log[prefix + name]
        for prefix in ("", "eval_")
        for name in MEASURED
        for log in history
        if prefix + name in log
    }
    if found:
        text += "\n## Last measured\n\n| metric | value |\n| --- | --- |\n" + "".join(
            f"| {k} | {v:.4g} |\n" for k, v in found.items()
        )
    return f"{text}\n## Citation\n\n```bibtex\n{CITATION}\n```\n"


def rewrite_card(path: Path, body: str) -> None:
    """Replace the text of the card that transformers wrote, and add our tags to its metadata."""
    data = ModelCard.load(path).data
    data.tags = [*dict.fromkeys([*(data.tags or []), *TAGS])]
    path.write_text(f"---\n{data.to_yaml()}\n---\n{body}", encoding="utf-8")
