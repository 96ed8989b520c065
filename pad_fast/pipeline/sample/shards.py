"""Responses of a model to prompts, shard by shard, with `model.generate`; token ids are kept exactly as they were sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig

from pad_fast.models.scoring import score_responses
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.files import Row, derive_seed, shard_path, write_rows

OnShard = Callable[[int, Row], None]


@dataclass(frozen=True)
class Sampler:
    """How to sample: `num_generations` responses a prompt at the run's temperature, or, if that is 0, one greedy response."""

    config: RunConfig
    num_generations: int
    normalize: str | None = (
        None  # set, the model's own rewards of its responses are stored beside them
    )

    @property
    def per_prompt(self) -> int:
        return max(1, self.num_generations)

    def generation_config(self, eos_token_ids: list[int], pad_token_id: int) -> GenerationConfig:
        config = self.config
        sampling: dict[str, Any] = {"do_sample": False}
        if self.num_generations:
            sampling = {
                "do_sample": True,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
            }
            sampling["num_return_sequences"] = self.num_generations
        return GenerationConfig(
            max_new_tokens=config.max_new_tokens,
            eos_token_id=eos_token_ids,
            pad_token_id=pad_token_id,
            **sampling,
        )


def shards(rows: Sequence[Row], folder: Path, size: int) -> list[tuple[int, Path, Sequence[Row]]]:
    """(index, path, rows) of every shard of `rows`."""
    return [
        (index, shard_path(folder, index), rows[start : start + size])
        for index, start in enumerate(range(0, len(rows), size))
    ]


def unfinished(rows: Sequence[Row], folder: Path, size: int) -> bool:
    """Whether any shard is still to be written."""
    return any(not path.exists() for _, path, _ in shards(rows, folder, size))


def sample_shards(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    folder: Path,
    sampler: Sampler,
    *,
    seed: int,
    title: str,
    on_shard: OnShard | None = None,
) -> None:
    """Write the responses to `rows` as shards into `folder`, less those that are there; `rows` hold `prompt_ids`.

    The seed of a shard derives from `seed` and its index alone, so a run that was killed samples the same as one that was not.
    `on_shard` is told the metrics of each shard before that is written.
    """
    config = sampler.config
    todo = shards(rows, folder, config.shard_size)
    done = sum(len(part) for _, path, part in todo if path.exists()) * sampler.per_prompt
    total = len(rows) * sampler.per_prompt
    with tqdm(
        total=total, initial=done, desc=title, unit="response", disable=config.disable_tqdm
    ) as bar:
        for index, path, part in todo:
            if path.exists():
                continue
            torch.manual_seed(derive_seed(seed, index))
            sampled = _sample(checkpoint, part, sampler, bar.update)
            if on_shard is not None:
                on_shard(index, sampling_metrics(sampled))
            write_rows(path, sampled)


def sampling_metrics(rows: Sequence[Row]) -> Row:
    """Lengths in tokens, the share that was cut at max_new_tokens, and that of responses that repeat another of their prompt."""
    groups = [[tuple(ids) for ids in row["completion_ids"]] for row in rows]
    lengths = [len(ids) for group in groups for ids in group]
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    return {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": reasons.count("length") / len(reasons),
        "completions/duplicate_ratio": sum(len(group) - len(set(group)) for group in groups)
        / len(lengths),
    }


def _sample(
    checkpoint: Checkpoint, rows: Sequence[Row], sampler: Sampler, progress: Callable[[int], object]
) -> list[Row]:
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    eos = checkpoint.eos_token_ids
    # A checkpoint's own generation config would fill in what ours leaves open, such as a repetition penalty.
    model.generation_config = sampler.generation_config(
        eos, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    )
    sampled: list[Row] = [{} for _ in rows]
    for batch in _batches([len(row["prompt_ids"]) for row in rows], sampler):
        groups = _generate(
            model, [rows[index]["prompt_ids"] for index in batch], sampler.per_prompt
        )
        for index, group in zip(batch, groups, strict=True):
            sampled[index] = {**rows[index], **_responses(group, eos, tokenizer)}
        progress(len(batch) * sampler.per_prompt)
    if sampler.normalize is not None:
        config = sampler.config
        options: dict[str, Any] = {
            "normalize": sampler.normalize,
            "temperature": config.reward_temperature,
            "share_prefix": config.share_prefix,
            "max_tokens_per_batch": config.score_batch_tokens,
        }
        ids = [row["completion_ids"] for row in sampled]
        for row, rewards in zip(
            sampled,
            score_responses(model, [row["prompt_ids"] for row in rows], ids, **options),
            strict=True,
        ):
            row["student_rewards"] = rewards
    return sampled


def _batches(lengths: Sequence[int], sampler: Sampler) -> Iterator[list[int]]:
    """Prompts of like length, longest first, as many as the token budget holds with all their responses."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        tokens = (lengths[order[start]] + sampler.config.max_new_tokens) * sampler.per_prompt
        size = max(1, sampler.config.sample_batch_tokens // tokens)
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def _generate(
    model: Any, prompts: Sequence[Sequence[int]], per_prompt: int
) -> list[list[list[int]]]:
    """The tokens after each prompt, with the padding that generation leaves after the end."""
    width = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    return output[:, width:].view(len(prompts), per_prompt, -1).tolist()


def _responses(group: Sequence[Sequence[int]], eos_token_ids: Sequence[int], tokenizer: Any) -> Row:
    """Ids up to and with the first end of sequence, their text, and whether they ended (`stop`) or were cut off (`length`)."""
    completion_ids, finish_reasons = [], []
    for tokens in group:
        end = next((place for place, token in enumerate(tokens) if token in eos_token_ids), None)
        completion_ids.append(list(tokens) if end is None else list(tokens[: end + 1]))
        finish_reasons.append("length" if end is None else "stop")
    texts = [
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in completion_ids
    ]
    return {
        "completions": texts,
        "completion_ids": completion_ids,
        "finish_reasons": finish_reasons,
    }
