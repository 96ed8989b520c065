"""Opening a run: starting a new one, or resuming one where it was left.

Everything that can be checked before the first token is sampled is checked here.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from pad_fast.environment import versions
from pad_fast.pipeline import multiple_choice, prompts
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig, Settings
from pad_fast.pipeline.files import Row, write_json, write_rows
from pad_fast.pipeline.phases import PREPARE, changed_settings
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.seeds import round_seed

logger = logging.getLogger("pad_fast")

FORMAT = 1  # version of a run folder's layout
UNLIMITED = 1 << 62


@contextlib.contextmanager
def open_run(settings: Settings) -> Iterator[RunContext]:
    """Start or resume a run, and hold its folder's lock inside the block.

    Raises:
        ValueError: prompts, models and settings do not fit together, the run folder was started
            with others, or another process holds it.
    """
    run = RunContext(settings)
    if run.training.n_gpu > 1:
        raise ValueError(
            f"a run uses one GPU, got {run.training.n_gpu}; set CUDA_VISIBLE_DEVICES to one of them"
        )
    with run.folder.locked():
        if run.folder.manifest_path.exists():
            _check_unchanged(run)
        else:
            _prepare(run)
        yield run


def _prepare(run: RunContext) -> None:
    config, root = run.config, run.folder.root
    student, teacher = run.student(0), run.teacher
    check_models(config, student, teacher)
    read = read_split(config)
    for rows in read:
        check_prompts(rows, student, teacher)
    train, heldout = (
        fitting(rows, config, student, teacher, run.training.max_length) for rows in read
    )
    if not train:
        raise ValueError("prompts: every one of them is too long")
    write_rows(root / "prompts.parquet", train)
    if heldout:
        write_rows(root / "heldout" / "prompts.parquet", heldout)
    manifest = {
        "format": FORMAT,
        "created": run.started.isoformat(timespec="seconds"),
        "config": run.settings.flat(),
        "seeds": {
            "run": config.seed,
            **{
                f"round-{r:02d}": round_seed(config.seed, r, "train")
                for r in range(1, config.rounds + 1)
            },
        },
        "versions": versions(),
        "models": {"student": student.fingerprint(), "teacher": teacher.fingerprint()},
        "prompts": {"train": len(train), "heldout": len(heldout), "files": _file_hashes(config)},
        "phases": {},
    }
    write_json(run.folder.manifest_path, manifest)


def read_split(config: RunConfig) -> tuple[list[Row], list[Row]]:
    """The training prompts and the held-out prompts."""
    train = prompts.read_prompts(str(config.prompts), config.prompts_split, config.prompts_subset)
    if config.heldout is None:
        return prompts.split_heldout(train, config.heldout_size)
    heldout = prompts.read_prompts(config.heldout, config.heldout_split, config.prompts_subset)[
        : config.heldout_size
    ]
    return prompts.without(train, heldout), heldout


def check_models(config: RunConfig, student: Checkpoint, teacher: Checkpoint) -> None:
    """Raise ValueError for what would otherwise fail only after hours of sampling."""
    for checkpoint in (student, teacher):
        _ = checkpoint.tokenizer, checkpoint.eos_token_ids
        if checkpoint.window is not None and checkpoint.window <= config.max_new_tokens:
            raise ValueError(
                f"max_new_tokens: must leave room for a prompt in the {checkpoint.role}'s window "
                f"of {checkpoint.window} tokens, got {config.max_new_tokens}"
            )
    if config.asks:
        multiple_choice.letter_token_ids(teacher.tokenizer, config.letters)


def check_prompts(rows: Sequence[Row], student: Checkpoint, teacher: Checkpoint) -> None:
    """Raise ValueError for a prompt of which a chat template leaves out the text of a message.

    A template may leave out a message, such as the system's, without a word: the model would answer
    and score another conversation than the one in the file.
    """
    same = teacher.same_tokenizer(student)
    for row in rows:
        try:
            for checkpoint in (student,) if same else (student, teacher):
                checkpoint.chat.check(row["prompt"])
        except ValueError as error:
            raise ValueError(f"{row['place']}: {error}") from None


def fitting(
    rows: Sequence[Row],
    config: RunConfig,
    student: Checkpoint,
    teacher: Checkpoint,
    max_length: int | None,
) -> list[Row]:
    """The rows whose prompt and longest response fit both models, with ``prompt_ids`` added.

    Args:
        rows: prompts, as :func:`pad_fast.pipeline.prompts.read_prompts` returns them.
        config: the run's settings.
        student: the base student.
        teacher: the teacher.
        max_length: of the training, in tokens. It cuts responses, but a prompt must leave room for
            one token.

    Raises:
        ValueError: a prompt is too long and long_prompts is "error", or a chat template refuses it.
    """
    room = {
        which.role: (which.window or UNLIMITED) - config.max_new_tokens
        for which in (student, teacher)
    }
    room["student"] = min(
        room["student"], config.max_prompt_length or UNLIMITED, (max_length or UNLIMITED) - 1
    )
    same, kept = teacher.same_tokenizer(student), []
    for row in rows:
        place = row.pop("place")
        try:
            ids = {"student": student.prompt_ids(row["prompt"])}
            ids["teacher"] = ids["student"] if same else teacher.prompt_ids(row["prompt"])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        long = next((role for role in ids if len(ids[role]) > room[role]), None)
        if long is None:
            kept.append({**row, "prompt_ids": ids["student"]})
        elif config.long_prompts == "error":
            raise ValueError(
                f"{place}: the prompt has {len(ids[long])} tokens for the {long}, where at most "
                f"{room[long]} are allowed (its window minus max_new_tokens, max_prompt_length, "
                "or less than max_length); shorten it or set long_prompts to drop: "
                f"{row['prompt'][-1]['content']!r:.60}"
            )
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d prompts are too long and are dropped", len(rows) - len(kept), len(rows)
        )
    return kept


def _check_unchanged(run: RunContext) -> None:
    """Raise ValueError unless what the folder holds was made with these settings and models."""
    manifest = run.folder.manifest()
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"output_dir: {run.folder.root} has format {manifest.get('format')}, and this version "
            f"reads format {FORMAT}; give another output_dir"
        )
    before, now = manifest["config"], run.settings.flat()
    changed, begun = changed_settings(before, now), run.folder.begun()
    for name, phase in changed.items():
        if phase in begun:
            since = "was started" if phase == PREPARE.name else f"has begun to {phase}"
            raise ValueError(
                f"{name}: {run.folder.root} {since} with {before.get(name)!r}, "
                f"got {now.get(name)!r}; go on with the former or give another output_dir"
            )
    for role, checkpoint in (("student", run.student(0)), ("teacher", run.teacher)):
        if checkpoint.fingerprint() != manifest["models"][role]:
            raise ValueError(
                f"{role}: {checkpoint.path} is not the model that {run.folder.root} was started "
                "with; give another output_dir"
            )
    for path, digest in _file_hashes(run.config).items():
        if manifest["prompts"]["files"].get(path, digest) != digest:
            raise ValueError(
                f"prompts: {path} is not the file that {run.folder.root} was started with; "
                "give another output_dir"
            )
    if now != before:
        _take_changes(run, manifest, changed)


def _take_changes(run: RunContext, manifest: Row, changed: dict[str, str | None]) -> None:
    """Record changed settings and their time in the manifest, if they fit what was prepared."""
    check_models(run.config, run.student(0), run.teacher)
    limit = run.training.max_length
    longest = max(len(row["prompt_ids"]) for row in run.train_rows)
    if limit is not None and longest >= limit:
        raise ValueError(
            f"max_length: must be more than the {longest} tokens of the longest prompt in "
            f"{run.folder.root}, got {limit}"
        )
    for phase in sorted({phase for phase in changed.values() if phase is not None}):
        run.metrics.forget(phase)  # its lines from before it was stopped
    before, now = manifest["config"], run.settings.flat()
    change = {
        "at": _now(),
        "from": {name: before.get(name) for name in changed},
        "to": {name: now.get(name) for name in changed},
    }
    write_json(
        run.folder.manifest_path,
        {**manifest, "config": now, "changes": [*manifest.get("changes", []), change]},
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _file_hashes(config: RunConfig) -> dict[str, str]:
    paths = [Path(source) for source in (config.prompts, config.heldout) if source is not None]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()
    }
