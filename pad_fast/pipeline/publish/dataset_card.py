"""The responses of a run as a dataset: a file for each shard, and a card about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from pad_fast.files.own_files import read_table, write_table
from pad_fast.pipeline.evaluate.heldout import groups_folder
from pad_fast.pipeline.hub import hub_name
from pad_fast.pipeline.parquet_rows import shard_paths
from pad_fast.pipeline.publish.model_card import markdown, named, responses_in_words
from pad_fast.pipeline.run import RunContext

# What others can use, each in a sentence. Columns of a run's own, such as its token ids, stay here.
COLUMNS = {
    "prompt_id": "Equal prompts have equal ids.",
    "prompt": "The conversation that is answered, a list of messages with role and content.",
    "answer": "The right answer, if there is one.",
    "skill": "What the prompt is about, if that was given.",
    "completions": "The responses to the prompt, n texts.",
    "finish_reasons": "Of each response: stop if the model ended it, length if it was cut.",
    "teacher_rewards": "The {judge}'s reward of each response, {unit}; null if it is too long.",
    "teacher_logps": "The log-probability of each response under the teacher, in nats.",
    "teacher_choice_probs": "How often the teacher chose each response in its questions.",
    "student_rewards": "The reward of each response under the student that sampled it, {unit}.",
    "from_teacher": "Whether a response is the teacher's own.",
}
SPLITS = {"responses": "what each round trained on", "heldout": "the fixed held-out groups"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset(run: RunContext, folder: Path) -> None:
    """Write the run's scored responses below ``folder``, with a card as ``README.md``."""
    infos, configs, rows = DatasetInfosDict(), MetadataConfigs(), 0
    for config, sources in _sources(run).items():
        splits, features = datasets.SplitDict(), None
        for split, source in sources.items():
            size, found, schema = _copy(source, folder / config / split)
            rows += found
            splits.add(datasets.SplitInfo(split, size, found))
            features = datasets.Features.from_arrow_schema(schema)
        infos[config] = datasets.DatasetInfo(features=features, splits=splits, config_name=config)
        configs[config] = {
            "data_files": [
                {"split": split, "path": f"{config}/{split}/part-*.parquet"} for split in sources
            ],
            **({"default": True} if config == "responses" else {}),
        }
    data = _metadata(run, rows)
    infos.to_dataset_card_data(data)
    configs.to_dataset_card_data(data)
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(run, list(infos))) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _sources(run: RunContext) -> dict[str, dict[str, Path]]:
    """The folders of shards, by config and split."""
    rounds = {
        f"round_{round:02d}": run.folder.round(round) / "scores"
        for round in range(1, run.config.rounds + 1)
    }
    found = {"responses": rounds, "heldout": {"test": groups_folder(run)}}
    kept = {
        config: {split: folder for split, folder in folders.items() if shard_paths(folder)}
        for config, folders in found.items()
    }
    return {config: folders for config, folders in kept.items() if folders}


def _copy(source: Path, target: Path) -> tuple[int, int, pa.Schema]:
    """Write the columns of a folder's shards that others can use; their bytes, rows and schema."""
    size, rows, schema = 0, 0, pa.schema([])
    for shard in shard_paths(source):
        table = read_table(shard, list(COLUMNS)).replace_schema_metadata()
        write_table(target / shard.name, table)
        size, rows, schema = size + table.nbytes, rows + table.num_rows, table.schema
    return size, rows, schema


def _metadata(run: RunContext, rows: int) -> DatasetCardData:
    name = str(run.config.hub_dataset_id).rpartition("/")[2]
    config = run.config
    sources = [hub_name(source) for source in (config.prompts, config.responses, config.heldout)]
    return DatasetCardData(
        pretty_name=name,
        task_categories=["text-generation"],
        tags=["pad-fast", "preference", "distillation"],
        source_datasets=list(dict.fromkeys(filter(None, sources))) or None,
        size_categories=[next((text for most, text in SIZES if rows < most), "n>1M")],
    )


def _body(run: RunContext, configs: list[str]) -> Iterator[str]:
    name, judge = str(run.config.hub_dataset_id), run.folder.manifest().get("judge", "teacher")
    unit = "in nats" if run.training.normalize == "sum" else "in nats per token"
    unit = unit if judge == "teacher" else "in its own unit"
    student = f"{named(str(run.config.student))} in training"
    responses = responses_in_words(run, 1, student)
    if run.config.responses and run.config.rounds > 1:
        responses += f", and from round 2 on {responses_in_words(run, 2, student)}"
    yield f"# {name.rpartition('/')[2]}"
    yield ""
    yield (
        f"Groups of up to {run.config.responses_per_prompt} responses to a prompt, {responses}, "
        "for Preference-Aligned Distillation ([PAD](https://arxiv.org/abs/2502.14272)) with "
        "pad-fast."
    )
    yield ""
    yield from (f"- `{config}`: {SPLITS[config]}" for config in configs)
    yield from ("", "```python", "from datasets import load_dataset", "")
    yield from (f'rows = load_dataset("{name}", "{configs[0]}")', "```", "", "## Columns", "")
    rows = [
        [f"`{column}`", text.format(judge=judge, unit=unit)] for column, text in COLUMNS.items()
    ]
    yield from markdown(["column", "what it holds"], rows)
    yield from ("", "Responses are a model's, and may be wrong.")
