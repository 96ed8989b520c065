"""A reward model, a sequence classifier with one logit, in the place of a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification

from pad_fast.device import default_device
from pad_fast.files.stored_rows import Row
from pad_fast.models.similar_lengths import longest_first
from pad_fast.models.whole import check_values, whole_models
from pad_fast.pipeline.checkpoint import NO_CODE, Checkpoint
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.data_types import dtype_name
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.ranks import ALONE, Ranks
from pad_fast.pipeline.sample.engines import Ids, Progress, unseen
from pad_fast.pipeline.sample.shards import count_responses, keep_shard, without_result
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.metrics import reward_metrics
from pad_fast.pipeline.score.scorer import OnShard
from pad_fast.pipeline.shared_bar import SharedBar

CLASSIFIER = "ForSequenceClassification"


@dataclass
class RewardModel(Checkpoint):
    """A sequence classifier whose one logit is the reward of a conversation's last turn."""

    @property
    def model_class(self) -> Any:
        """The class of transformers that loads the model.

        Raises:
            ValueError: the model's answer is no reward, which its configuration says.
        """
        kinds = self.config.architectures or []
        if kinds and not any(kind.endswith(CLASSIFIER) for kind in kinds):
            raise ValueError(
                f"reward_model: must be a sequence classifier, and {self.path} is a "
                f"{' or '.join(kinds)}; give a language model as teacher"
            )
        if self.config.num_labels != 1:
            names = ", ".join(map(str, self.config.id2label.values()))
            raise ValueError(
                f"reward_model: must give one number, and {self.path} has "
                f"{self.config.num_labels} labels ({names}); take a model that was trained with "
                "num_labels=1"
            )
        return AutoModelForSequenceClassification

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """It ends nothing."""
        return []

    def same_tokenizer(self, other: Checkpoint) -> bool:
        """It reads texts."""
        return False

    @cached_property
    def model(self) -> Any:
        """The model on the default device, in evaluation mode.

        Raises:
            ValueError: the files hold no weights for a part of it, which would be random.
        """
        _ = self.tokenizer  # a missing one has to fail before the weights are loaded
        attention = (
            {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        )
        with whole_models(), measured("load reward_model", "model") as work:
            model, loading = self.model_class.from_pretrained(
                self.path,
                revision=self.revision,
                dtype=self.loaded_dtype,
                output_loading_info=True,
                **attention,
                **NO_CODE,
            )
            work.add(1)
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"reward_model: {self.path} holds no weights for {', '.join(missing)}, which would "
                "be random"
            )
        check_values(model, f"reward_model: {self.path}")
        return model.to(default_device()).eval()

    @cached_property
    def _own_padding(self) -> int | None:
        return self.config.get_text_config().pad_token_id

    @property
    def identity(self) -> str:
        """What computes, in a line; it stands in every shard."""
        dtype, attention = dtype_name(self.loaded_dtype), self.attn_implementation
        names = ("reward model", "transformers", transformers.__version__, dtype, attention)
        return " ".join(filter(None, names))

    def conversation(self, prompt: Sequence[Any], response: str) -> list[int]:
        """The token ids of a prompt with a response; none if they are too long for the model."""
        ids = self.chat.conversation_ids([*prompt, {"role": "assistant", "content": response}])
        return ids if self.window is None or len(ids) <= self.window else []

    def rewards(
        self, rows: Sequence[Ids], max_tokens: int, progress: Progress = unseen
    ) -> list[float]:
        """The logits of conversations.

        Args:
            rows: token ids, none of them empty.
            max_tokens: the most in a batch, padding included, unless one row has more.
            progress: called with the number of rewards, batch by batch.

        Raises:
            ValueError: a reward is not finite.
        """
        found = [0.0] * len(rows)
        lengths = [len(row) for row in rows]
        for batch in longest_first(lengths, lambda longest: max_tokens // longest):
            logits = self._logits([rows[index] for index in batch])
            for index, logit in zip(batch, logits, strict=True):
                if not math.isfinite(logit):
                    raise ValueError(
                        f"reward_model: {self.path} in {str(self.model.dtype)[6:]} gives a reward "
                        "that is not finite, and nothing of it is kept; set dtype: float32"
                    )
                found[index] = logit
            progress(len(batch))
        return found

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Ids]) -> list[float]:
        """The logits of a batch, each that of the row alone."""
        model, pad = self.model, self._own_padding
        if pad is None:
            # Without padding of its own a decoder reads its logit at the last token. The end token
            # would not do for padding: the logit would be read before that of a row.
            config, used = model.config.get_text_config(), set().union(*rows)
            pad = next(token for token in range(config.vocab_size) if token not in used)
            config.pad_token_id = pad
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        return output.logits[:, 0].float().tolist()


class RewardScorer:
    """Adds a reward model's rewards to sampled rows, as the teacher's columns.

    Args:
        model: the reward model.
        cache: holds what it was asked before.
        max_tokens: the most in a batch.
        quiet: show no progress bar.
        ranks: those that score.
    """

    def __init__(
        self,
        model: RewardModel,
        cache: ScoreCache,
        max_tokens: int,
        quiet: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.cache, self.max_tokens, self.quiet = model, cache, max_tokens, quiet
        self.ranks = ranks

    def score_shards(
        self,
        samples: Path,
        folder: Path,
        num_generations: int,
        *,
        title: str,
        on_shard: OnShard | None = None,
    ) -> None:
        """Write the shards of ``samples`` that ``folder`` lacks, see :class:`Scorer`."""
        todo = without_result(samples, folder, self.ranks)
        quiet, total = self.quiet or not todo, count_responses(todo)
        name = f"{title}: score"
        with (
            measured(name, "response", self.ranks) as work,
            SharedBar(self.ranks, total, name, "response", quiet=quiet) as bar,
        ):
            for source in self.ranks.share(todo):
                scored = self.scored(read_rows(source), bar.update)
                lengths = [count for row in scored for count in row["teacher_num_tokens"]]
                work.add(len(lengths), sum(lengths))
                keep_shard(folder / source.name, scored, reward_metrics(scored), on_shard)

    def scored(self, rows: Sequence[Row], progress: Progress = unseen) -> list[Row]:
        """The rows with rewards; a response that is too long for the model has None."""
        conversations = [
            [self.model.conversation(row["prompt"], text) for text in row["completions"]]
            for row in rows
        ]
        wanted = {
            self.cache.key("reward", ids): ids for group in conversations for ids in group if ids
        }
        progress(sum(map(len, conversations)) - len(wanted))
        known = self.cache.known_or(
            wanted,
            lambda missing: [
                [reward] for reward in self.model.rewards(missing, self.max_tokens, progress)
            ],
            progress,
        )
        return [
            {
                **row,
                "teacher_logps": None,
                "teacher_num_tokens": [len(ids) for ids in group],
                "teacher_choice_probs": None,
                "teacher_rewards": [
                    known[self.cache.key("reward", ids)][0] if ids else None for ids in group
                ],
                "scored_by": self.model.identity,
            }
            for row, group in zip(rows, conversations, strict=True)
        ]
