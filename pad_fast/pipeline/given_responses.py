"""Prompts with responses that were sampled elsewhere: reading them, and checking each row."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pad_fast.conversation.pairs import BY_RANK
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.prompts import (
    checked_rows,
    iter_prompts,
    prompt_digest,
    raw_rows,
    short_digest,
)
from pad_fast.pipeline.response_forms import Given, given_in, holds_responses

logger = logging.getLogger("pad_fast")

# What a row has beside its prompt; the run's own files of prompts hold a digest of it alone.
COLUMNS = ("completions", "given_scores", "finish_reasons")


def iter_heldout(config: RunConfig) -> Iterator[Row]:
    """The held-out rows of ``config.heldout``, with a column ``given``, as they are read.

    Rows without responses are prompts, which the student answers.

    Raises:
        ValueError: a row is wrong; the message names the file and its line or row.
    """
    if _holds_responses(config):
        yield from iter_responses(config, "heldout")
        return
    if not config.has_judge:
        raise ValueError(
            f"heldout: {config.heldout} holds no responses, and neither a teacher nor a "
            "reward_model is given that scores those of the student; give rows with responses and "
            "scores, or leave it out"
        )
    rows = iter_prompts(str(config.heldout), config.heldout_split, config.prompts_subset, "heldout")
    for row in rows:
        yield {**row, "given": None, "scored": False}


@dataclass
class _Counts:
    """What is not taken as it stands, with the first place of each kind."""

    found: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, place: str, count: int = 1) -> None:
        if count:
            self.found[what] += count
            self.first.setdefault(what, place)

    def warn(self, source: str) -> None:
        for what, count in self.found.items():
            logger.warning("%s: %d %s; the first is %s", source, count, what, self.first[what])


def read_again(config: RunConfig) -> Iterator[Row]:
    """The rows with responses, without another word about them."""
    yield from iter_responses(config, quiet=True)
    if config.heldout is not None and _holds_responses(config):
        yield from iter_responses(config, "heldout", quiet=True)


def _holds_responses(config: RunConfig) -> bool:
    found = _raw_rows(config, "heldout")
    return holds_responses(next(found, ("", None))[1])


def _raw_rows(config: RunConfig, setting: str) -> Iterator[tuple[str, Any]]:
    split = config.heldout_split if setting == "heldout" else config.responses_split
    return raw_rows(str(getattr(config, setting)), split, config.prompts_subset, setting)


def iter_responses(
    config: RunConfig, setting: str = "responses", *, quiet: bool = False
) -> Iterator[Row]:
    """The rows of a file or dataset that hold at least two different responses, as they are read.

    Args:
        config: of the run.
        setting: that names the file or dataset, which :func:`iter_prompts` could take.
        quiet: do not warn of what is left out.

    Yields:
        Rows as :func:`iter_prompts` gives them, with :data:`COLUMNS`, their digest, ``given``, and
        whether their scores are kept, ``scored``. Rows of one prompt stay apart, since the scores
        of two rows may not be comparable.

    Raises:
        ValueError: a row is wrong; the message names the file and its line or row.
    """
    counts, unread = _Counts(), Counter[str]()
    ids: dict[str, bytes] = {}  # prompt_id -> digest of its prompt
    seen: set[bytes] = set()
    scored: bool | None = None
    source = str(getattr(config, setting))
    for place, raw in _raw_rows(config, setting):
        row, given = _row(place, raw, unread)
        scores = _kept_scores(given, config)
        if scored is not None and scored != (scores is not None):
            raise ValueError(
                f"{place}: has {'no ' if scored else ''}scores, and earlier rows have "
                f"{'some' if scored else 'none'}; give all rows scores, or none, or set "
                "responses_scores to ignore"
            )
        scored = scores is not None
        if scores is None and not config.has_judge:
            raise ValueError(
                f"{place}: has no scores, and neither a teacher nor a reward_model is given that "
                "would score its responses"
            )
        kept = _distinct(place, given, scores, counts)
        if len(kept["completions"]) > config.most_generations:
            raise ValueError(
                f"{place}: has {len(kept['completions'])} responses, more than num_generations; "
                f"set num_generations to the most in a row, got {config.num_generations}"
            )
        live = kept["given_scores"] or [0.0] * len(kept["completions"])
        if sum(score is not None for score in live) < 2:
            counts.add(
                "rows with fewer than two different responses with a score are left out", place
            )
            continue
        digest = hashlib.sha256(json.dumps([row["prompt"], kept]).encode()).hexdigest()
        if (short := short_digest(digest)) in seen:
            counts.add("rows repeat an earlier row and are left out", place)
            continue
        seen.add(short)
        row["prompt_id"] = _own_id(place, row, ids)
        yield {**row, "place": place, **kept, "given": digest, "scored": scored}
    if not seen:
        raise ValueError(f"{source}: holds no row with two different responses to compare")
    if not quiet:
        for name, count in unread.items():
            logger.warning("%s: not read into the prompts: %s (of %d rows)", source, name, count)
        counts.warn(source)


def _row(place: str, raw: object, unread: Counter[str]) -> tuple[Row, Given]:
    """The prompt of a row and its responses."""
    if not isinstance(raw, dict):
        raise ValueError(f"{place}: must be an object, got {type(raw).__name__}")
    try:
        given = given_in(raw)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    prompts = [row for _, row in checked_rows([(place, given.prompt)], unread)]
    if len(prompts) > 1:
        raise ValueError(
            f"{place}: instances make {len(prompts)} prompts, and responses belong to one"
        )
    return prompts[0], given


def _kept_scores(given: Given, config: RunConfig) -> list[float | None] | None:
    """The scores that are the rewards; None if the judge has to give them."""
    if config.responses_scores == "ignore":
        return None
    if given.scores is None and given.pair and not config.has_judge:
        return list(BY_RANK)
    return given.scores


def _distinct(
    place: str, given: Given, scores: Sequence[float | None] | None, counts: _Counts
) -> Row:
    """The responses of a row, equal ones once and with the mean of their scores."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, response in enumerate(zip(given.texts, given.reasons, strict=True)):
        groups.setdefault(response, []).append(index)
    counts.add(
        "responses repeat another one of their row and count once, with the mean of the scores",
        place,
        len(given.texts) - len(groups),
    )
    found = None
    if scores is not None:
        found = [_mean(scores[index] for index in group) for group in groups.values()]
        counts.add("responses have no score and are masked", place, found.count(None))
    return {
        "completions": [text for text, _ in groups],
        "given_scores": found,
        "finish_reasons": [reason for _, reason in groups],
    }


def _mean(scores: Iterator[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if known else None


def _own_id(place: str, row: Row, ids: dict[str, bytes]) -> str:
    """The row's id, with a number where the prompt has other rows."""
    whole = prompt_digest(row["prompt"])
    digest = short_digest(whole)
    base = name = row["prompt_id"] or whole[:16]
    if ids.get(base, digest) != digest:
        raise ValueError(f"{place}: prompt_id {base!r} is taken by another prompt")
    number = 1
    while name in ids:
        number += 1
        name = f"{base}-{number}"
    ids[name] = digest
    return name
