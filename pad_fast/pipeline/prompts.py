"""Prompts: reading them from a file or a dataset, checking each, and holding some out."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pad_fast.conversation import with_input
from pad_fast.evaluation.answers import number as number_in
from pad_fast.files.stored_rows import Row, Rows, left_out, take
from pad_fast.files.user_files import csv_rows, json_rows, parquet_rows
from pad_fast.pipeline.cells import cell_text

logger = logging.getLogger("pad_fast")

ALIASES = ("prompt", "instruction", "question", "turns")
INPUTS = ("input", "context")  # what an instruction is about, in Alpaca's and Dolly's files
READ = ("prompt_id", "answer", "skill")
# Columns that hold what a prompt may need, and columns with answers and remarks, which it does not.
CONTENT = (
    *(*INPUTS, "system", "system_prompt", "history", "conversations", "messages", "text", "query"),
    *("document", "documents", "passage", "article", "choices", "options", "tools", "images"),
)
NO_CONTENT = (
    *("output", "outputs", "response", "responses", "completion", "completions", "generations"),
    *("chosen", "rejected", "reference", "references", "target", "targets", "answers", "solution"),
    *("correct_answers", "incorrect_answers", "generator", "source", "dataset", "category", "name"),
    *("models", "model", "meta", "metadata", "id", "question_id", "motivation_app"),
    *("level", "type", "subject", "difficulty", "explanation", "rationale", "language", "url"),
    *("author", "date", "timestamp", "created_at"),
    *("sampled_by", "scored_by"),  # a run's own
)
FILES = (".jsonl", ".json", ".csv", ".parquet")
MOST_HELD_OUT = 256
Message = dict[str, str]


def iter_prompts(
    source: str, split: str = "train", subset: str | None = None, setting: str = "prompts"
) -> Iterator[Row]:
    """The prompts of a file or a dataset, each once, as they are read.

    Args:
        source: JSON lines (.jsonl or .json), a list of JSON objects (.json), .csv with a header
            line, or .parquet, all in UTF-8; else a folder or hub name of a dataset.
        split: the split of a dataset.
        subset: the configuration name of a dataset.
        setting: that gives the source, for messages.

    Yields:
        Rows with the keys ``prompt_id``, ``prompt`` (chat messages), ``answer`` and ``skill`` (each
        a string or None), and ``place``, which says where the row was found. Ids and hashes alone
        stay in memory.

    Raises:
        ValueError: a row is wrong; the message names the file and its line or row.

    Notes:
        The prompt is read from the column ``prompt``, ``instruction`` or ``question``. It is a
        string, which becomes one user message, or a list of chat messages. An instruction is joined
        with ``input`` or ``context`` by a blank line, and with the input of each of ``instances``.
        Of ``turns``, which MT-Bench has, the first is the prompt. A warning names other columns
        that look like a part of the prompt. A blank answer is none, and a number loses the commas
        between its thousands.
    """
    seen: set[bytes] = set()
    ids: set[str] = set()
    unread: Counter[str] = Counter()
    repeated = 0
    for place, row in checked_rows(raw_rows(source, split, subset, setting), unread):
        digest = prompt_digest(row["prompt"])
        if (short := short_digest(digest)) in seen:
            repeated += 1
            continue
        row.update(prompt_id=row["prompt_id"] or digest[:16], place=place)
        if row["prompt_id"] in ids:
            raise ValueError(f"{place}: prompt_id {row['prompt_id']!r} is taken by another prompt")
        ids.add(row["prompt_id"])
        seen.add(short)
        yield row
    if not seen:
        raise ValueError(f"{source}: holds no prompts")
    if unread:
        logger.warning(
            "%s: not read into the prompts: %s",
            source,
            ", ".join(f"{name} (of {count} rows)" for name, count in unread.items()),
        )
    if repeated:
        logger.warning(
            "%s: %d rows repeat the prompt of an earlier row and are ignored", source, repeated
        )


def prompt_digest(messages: Sequence[Message]) -> str:
    """A hash of a conversation, the same in every run."""
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()


def short_digest(digest: str) -> bytes:
    """The first 16 bytes of a hash, which take little memory and tell a million texts apart."""
    return bytes.fromhex(digest[:32])


def split_heldout(rows: Rows, size: int | None) -> tuple[Rows, Rows]:
    """Split rows into training and held-out ones.

    The held-out ones are chosen by their hash, so that the order of the rows does not matter.

    Args:
        rows: all prompts.
        size: number of prompts to hold out; by default a tenth of them but at most 256.
    """
    if size is None:
        size = min(MOST_HELD_OUT, -(-len(rows) // 10)) if len(rows) > 1 else 0
    if size >= len(rows):
        raise ValueError(
            f"heldout_size: must be less than the number of prompts, {len(rows)}, got {size}"
        )
    digests = ((prompt_digest(row["prompt"]), place) for place, row in enumerate(rows))
    chosen = sorted(place for _, place in heapq.nsmallest(size, digests)) if size else []
    return take(rows, left_out(len(rows), chosen)), take(rows, chosen)


def without(rows: Rows, heldout: Rows) -> Rows:
    """The rows whose prompts are not held out, which are those to train on."""
    if not heldout:
        return rows
    digests = {short_digest(prompt_digest(row["prompt"])) for row in heldout}
    found = (short_digest(prompt_digest(row["prompt"])) for row in rows)
    kept = [place for place, digest in enumerate(found) if digest not in digests]
    if len(kept) < len(rows):
        logger.warning(
            "prompts: %d of them are also held out and are not trained on", len(rows) - len(kept)
        )
    if not kept:
        raise ValueError(
            "prompts: every one of them is held out too, which leaves none to train on"
        )
    return take(rows, kept)


def raw_rows(
    source: str, split: str, subset: str | None, setting: str = "prompts"
) -> Iterator[tuple[str, Any]]:
    """The place and the columns of each row of a file or a dataset that a setting gives."""
    path = Path(source)
    if path.suffix in FILES and not path.is_file():
        raise ValueError(f"{setting}: no such file, {source}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{source}: the file is empty")
    if not path.is_file():
        return _numbered(source, _dataset(source, split, subset, setting))
    if path.suffix not in FILES:
        raise ValueError(f"{setting}: a file must be one of {', '.join(FILES)}, got {source}")
    if path.suffix == ".parquet":
        return parquet_rows(path)
    return csv_rows(path) if path.suffix == ".csv" else json_rows(path)


def _dataset(source: str, split: str, subset: str | None, setting: str) -> Iterable[Row]:
    import datasets
    import pyarrow as pa

    try:
        if (Path(source) / "dataset_info.json").is_file() or (
            Path(source) / "dataset_dict.json"
        ).is_file():
            loaded = datasets.load_from_disk(source)
            return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(source, name=subset, split=split)
    except (FileNotFoundError, KeyError, ConnectionError) as error:
        raise ValueError(
            f"{setting}: {source} is no file and no dataset with the split {split!r}: {error}"
        ) from None
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{setting}: the dataset {source} cannot be read: {reason}") from None


def _numbered(source: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa

    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{source}: row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{source}: row {number + 1} cannot be read: {' '.join(str(error).split())}"
        ) from None


def checked_rows(
    raw_rows: Iterable[tuple[str, Any]], unread: Counter[str]
) -> Iterator[tuple[str, Row]]:
    """Each prompt with its place; the columns that no prompt is read from are counted."""
    for place, raw in raw_rows:
        if not isinstance(raw, dict):
            raise ValueError(f"{place}: must be an object with a prompt, got {type(raw).__name__}")
        column = next((name for name in ALIASES if raw.get(name) is not None), None)
        if column is None:
            raise ValueError(
                f"{place}: no column {', '.join(ALIASES[:-1])} or {ALIASES[-1]}, only "
                f"{', '.join(map(str, raw)) or 'none'}"
            )
        texts = {name: cell_text(raw.get(name), f"{place}: {name}") for name in READ}
        if texts["answer"] is not None and number_in(texts["answer"]) is not None:
            texts["answer"] = texts["answer"].replace(",", "")
        prompts, read = _prompts(raw, column, place)
        unread.update(_unread(raw, {column, *read}))
        for number, prompt in enumerate(prompts):
            named = f"{texts['prompt_id']}-{number}" if texts["prompt_id"] and number else None
            row = {**texts, "prompt": _messages(prompt, f"{place}: {column}")}
            yield place, {**row, "prompt_id": named or texts["prompt_id"]}


def _prompts(raw: Row, column: str, place: str) -> tuple[list[Any], set[str]]:
    """The prompts of a row, and the columns next to ``column`` that they are read from."""
    prompt = raw[column]
    if column == "turns":
        return [_first_turn(prompt, place)], set()
    if column != "instruction" or not isinstance(prompt, str):
        return [prompt], set()
    name = next((name for name in INPUTS if _filled(raw.get(name))), None)
    if name is not None:
        if not isinstance(raw[name], str):
            raise ValueError(f"{place}: {name} must be a string, got {raw[name]!r:.80}")
        return [with_input(prompt, raw[name])], {name}
    instances = raw.get("instances")
    if not _filled(instances):
        return [prompt], set()
    if not isinstance(instances, list) or not all(
        isinstance(each, dict) and isinstance(each.get("input") or "", str) for each in instances
    ):
        raise ValueError(
            f"{place}: instances must be a list of objects with an input, got {instances!r:.80}"
        )
    # Instances without an input are more answers to the same prompt.
    joined = dict.fromkeys(with_input(prompt, each.get("input")) for each in instances)
    return list(joined), {"instances"}


def _first_turn(turns: Any, place: str) -> Any:
    """The first of several turns; each is a text or, as in Arena-Hard, an object with a content."""
    first = turns[0] if isinstance(turns, list) and turns else None
    first = first.get("content") if isinstance(first, dict) else first
    if not isinstance(first, str):
        raise ValueError(
            f"{place}: turns must be a list that begins with a text, got {turns!r:.80}"
        )
    return first


def _unread(raw: Row, read: set[str]) -> Iterator[str]:
    """The columns that look like a part of the prompt and are not read."""
    if "turns" in read and len(raw["turns"]) > 1:
        yield "turns after the first"
    for name, value in raw.items():
        if name in read or name in NO_CONTENT or name in READ:
            continue
        words = isinstance(value, str) and len(value.split()) > 1
        texts = isinstance(value, list) and any(isinstance(each, (str, dict)) for each in value)
        if _filled(value) and (name in CONTENT or name in ALIASES or words or texts):
            yield str(name)


def _filled(value: Any) -> bool:
    """Whether a cell holds something; NaN, which tables have in empty cells, is nothing."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value == value and value != [] and value != {}


def _messages(prompt: Any, place: str) -> list[Message]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if (
        not isinstance(prompt, list)
        or not prompt
        or not all(isinstance(message, dict) for message in prompt)
    ):
        raise ValueError(f"{place} must be a string or a list of chat messages, got {prompt!r:.80}")
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in prompt
    ]
    for message in messages:
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise ValueError(
                f"{place}: a message holds a role and a content, both strings, got {message!r:.80}"
            )
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{place}: the last message must not be the assistant's, whose answer is to be sampled"
        )
    if not any(message["content"].strip() for message in messages):
        raise ValueError(f"{place}: the prompt is empty")
    return messages
