"""The card of a student: metadata, how it was trained, what it achieved, and with which versions.

The training writes what it knows. The numbers follow when the round is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pad_fast.evaluation import model_names
from pad_fast.evaluation.benchmarks.run_table import read_run_table
from pad_fast.evaluation.evaluated_model import Row
from pad_fast.evaluation.reported_metrics import METRICS, Metric, in_text, is_measured
from pad_fast.files.own_files import read_json
from pad_fast.files.writing import replacing
from pad_fast.pipeline.hub import hub_name
from pad_fast.pipeline.run import RunContext
from pad_fast.report.wording import RATER, worded
from pad_fast.training.model_card import TAGS

EVALUATION, CITATION = "\n## Evaluation\n", "\n## Citation\n"
RIGHT = "greedy_accuracy"
TITLE = re.compile(r"\A# .*")
NAMES = {RIGHT: "accuracy", "kendall_tau": "kendall_tau"}  # what others call a metric


def update_card(run: RunContext, folder: Path, name: str) -> None:
    """Write metadata and numbers into the card of a student, unless it has none.

    Args:
        run: the run.
        folder: the student's.
        name: of its evaluation.
    """
    path = folder / "README.md"
    if not path.exists():
        return
    old = ModelCard.load(path, ignore_metadata_errors=True)
    new = card(run, old.text, name)
    if new != old.content:
        with replacing(path) as temporary:
            temporary.write_text(new, encoding="utf-8")


def card(run: RunContext, text: str, name: str) -> str:
    """The whole card.

    Args:
        run: the run.
        text: what the training wrote, without metadata; numbers in it are replaced.
        name: of the student's evaluation.
    """
    training, _, citation = text.partition(CITATION)
    training = training.partition(EVALUATION)[0].strip("\n")
    numbers = "\n".join(_evaluation(run, name))
    return with_metadata(run, f"{training}\n{EVALUATION}\n{numbers}\n{CITATION}{citation}", name)


def with_metadata(run: RunContext, text: str, name: str) -> str:
    """A card's text with its metadata above it and the model's name as its title."""
    named = TITLE.sub(lambda found: f"# {_title(run)}", text.strip(), count=1)
    return f"---\n{metadata(run, name).to_yaml()}\n---\n\n{named}\n"


def metadata(run: RunContext, name: str) -> ModelCardData:
    """What the Hub reads. A folder of this machine is nothing that others could look up."""
    config = run.config
    sources = [config.prompts, config.responses, config.heldout, config.hub_dataset_id]
    datasets = [known for source in sources if (known := hub_name(source)) is not None]
    found = read_evaluation(run, name)
    base = hub_name(config.student)
    results = list(_results(run, found))
    return ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "finetune",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pad-fast", *TAGS],
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=[name for key, name in NAMES.items() if is_measured(found.get(key))] or None,
        eval_results=results or None,
        model_name=_title(run) if results else None,
    )


def named(source: str) -> str:
    """What others call a model or dataset: its name on the Hub, or that of its file or folder."""
    return hub_name(source) or Path(source).name


def responses_in_words(run: RunContext, round: int, student: str) -> str:
    """Where a round's responses come from and who scored them, after "the responses are".

    Args:
        run: of which the manifest is written.
        round: the round.
        student: what the student is called that sampled, if they are not given.
    """
    config, judge = run.config, run.judge
    given = round == 1 and config.responses
    if judge is None or (given and _judge(run) == RATER):
        scored = "with the scores that came with them"
    else:
        scored = f"scored by the {judge.role.replace('_', ' ')} {named(judge.path)}"
    if given:
        return f"those of {named(given)}, {scored}"
    return f"sampled from {student} at temperature {config.temperature} and {scored}"


def read_evaluation(run: RunContext, name: str) -> Row:
    """The evaluation of a model; empty if there is none."""
    path = run.folder.evaluation(name)
    return read_json(path) if path.exists() else {}


def _title(run: RunContext) -> str:
    """The model's name on the Hub, else what the student is called and how it was trained."""
    name = run.training.hub_model_id or f"{Path(str(run.config.student)).name} after PAD"
    return name.rpartition("/")[2]


def _results(run: RunContext, found: Row) -> Iterator[EvalResult]:
    """The accuracy for the Hub's tables, where the held-out prompts are a dataset of the Hub."""
    dataset, value = hub_name(run.config.heldout), found.get(RIGHT)
    if dataset is not None and is_measured(value):
        yield EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=run.config.heldout_split,
            metric_type="accuracy",
            metric_name=f"{METRICS[RIGHT].label}, {found['num_prompts']} prompts",
            metric_value=round(100 * value, 2),
        )


def _evaluation(run: RunContext, name: str) -> Iterator[str]:
    """The sections on numbers and versions, line by line."""
    found = read_evaluation(run, name)
    if found:
        count = found["num_prompts"]
        yield f"On {count} held-out prompts; 95% intervals from a bootstrap over them."
        yield ""
        yield from _table(run, name)
    table = read_run_table(run.folder.root)
    if table is not None:
        yield from ("", "Benchmarks, with 95% intervals:", "")
        rows = [(model_names.label(model), cells) for model, cells in table.rows]
        yield from markdown(["", *table.columns], [[model, *cells] for model, cells in rows])
        yield from ("", *table.notes)
    yield from ("", "## Versions", "")
    yield from markdown(["", ""], _versions(run))


def _table(run: RunContext, name: str) -> Iterator[str]:
    """Before, after, and the teacher."""
    names = dict.fromkeys((model_names.BASE, name, model_names.TEACHER))
    rows = [row for each in names if (row := read_evaluation(run, each))]
    columns = in_text(rows)
    body = [
        [
            model_names.label(row["name"]),
            *(
                _cell(metric, row.get(metric.key), (row.get("intervals") or {}).get(metric.key))
                for metric in columns
            ),
        ]
        for row in rows
    ]
    headings = [worded(metric.text_heading, _judge(run)) for metric in columns]
    yield from markdown(["", *headings], body)


def _cell(metric: Metric, value: float | None, ends: Any) -> str:
    if not is_measured(value) or not ends:
        return metric.text(value)
    return f"{metric.text(value)} ({metric.amount(ends[0])} to {metric.amount(ends[1])})"


def _judge(run: RunContext) -> str:
    return str(run.folder.manifest().get("judge", "teacher"))


def _versions(run: RunContext) -> Iterator[list[str]]:
    manifest = run.folder.manifest()
    for role in ("student", "teacher", "reward_model"):
        if (source := getattr(run.config, role)) is not None:
            commit = manifest.get("models", {}).get(role, {}).get("commit")
            yield [
                role.replace("_", " "),
                named(source) + (f", revision {commit}" if commit else ""),
            ]
    yield ["seed", str(run.config.seed)]
    yield from ([name, str(version)] for name, version in manifest.get("versions", {}).items())


def markdown(headings: list[str], rows: Any) -> Iterator[str]:
    """A table, line by line."""
    yield f"| {' | '.join(headings)} |"
    yield "|" + " --- |" * len(headings)
    yield from (f"| {' | '.join(row)} |" for row in rows)
