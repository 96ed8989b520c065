"""The flags of ``pad-fast benchmark``, those of each of its words in a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pad_fast.pipeline.benchmark.config import BenchmarkConfig
from pad_fast.pipeline.benchmark.official_judge import DEFAULT_NAME, DEFAULT_URL
from pad_fast.pipeline.option import option


@dataclass
class ModelOptions:
    """How a model is loaded."""

    revision: str | None = option(None, "Hub revision of the model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Data type of the weights; auto: that of the checkpoint."
    )
    attn_implementation: str | None = option(
        None, "Attention by its name in transformers, such as sdpa."
    )
    chat_template_kwargs: str | None = option(
        None, 'JSON object passed to the chat template, such as {"enable_thinking": false}.'
    )
    server_patience: float = option(
        900.0, "Seconds for which servers may be out of reach before the command gives up."
    )
    disable_tqdm: bool = option(False, "Show no progress bars.")


@dataclass
class AnswerOptions(BenchmarkConfig, ModelOptions):
    """The flags of ``pad-fast benchmark gsm8k`` and of the other three."""

    model: str | None = option(
        None, "Folder or hub name of a transformers causal LM with a chat template."
    )
    server: list[str] = field(
        default_factory=list,
        metadata={
            "help": "URLs of vLLM or SGLang servers of the model, which then generate. The model "
            "still gives tokenizer and chat template."
        },
    )
    output_dir: str | None = option(
        None, "Folder of the answers and the result. Default: eval/, the benchmark and the name."
    )
    questions: str | None = option(
        None, "File of the benchmark's questions. Default: fetch them from where they are kept."
    )
    name: str | None = option(
        None, "Name of the model in the answers. Default: the end of its path."
    )
    shard_size: int = option(
        16, "Questions in a shard; a killed command loses at most the work on one."
    )
    sample_batch_tokens: int = option(
        65536, "Most tokens in a batch, prompts and answers together."
    )
    seed: int = option(42, "Seed of the answers that are sampled.")
    judge_url: str = option(
        DEFAULT_URL, "OpenAI-compatible URL of a judge, for the official tool's configuration."
    )
    judge_name: str = option(DEFAULT_NAME, "The judge's name at that URL.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise ValueError("model: needed, and not given; set it with --model")
        if self.name is None:
            self.name = Path(str(self.model)).resolve().name
        if "/" in self.name or self.name.startswith("."):
            raise ValueError(
                f"name: must be usable as a file's name, without / in it, got {self.name!r}"
            )
        for name in ("shard_size", "sample_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or more, got {getattr(self, name)}")


@dataclass
class CheckOptions:
    """The flags of ``pad-fast benchmark check``."""

    questions: str | None = option(
        None, "File of the questions that should be answered. Default: do not look."
    )
    limit: int | None = option(None, "Only the first so many questions are expected.")
    model: str | None = option(None, "Name that the answers should give the model.")


@dataclass
class JudgeOptions(ModelOptions):
    """The flags of ``pad-fast benchmark judge``."""

    judge: str | None = option(
        None,
        "Folder or hub name of a causal LM with a chat template; or its name at judge_server.",
    )
    judge_server: list[str] = field(
        default_factory=list,
        metadata={
            "help": "URLs of OpenAI-compatible servers of the judge. The key is read from "
            "OPENAI_API_KEY."
        },
    )
    questions: str | None = option(
        None, "File of the questions; needed for mt_bench and for comparisons by category."
    )
    limit: int | None = option(None, "The first so many of the questions.")
    output_dir: str | None = option(None, "Folder of the verdicts and the result.")
    tie_margin: float = option(
        0.0, "A probability this close to one half is no verdict, from 0 to below 0.5."
    )
    shard_size: int = option(64, "Matches in a shard of verdicts.")
    score_batch_tokens: int = option(16384, "Most tokens in a batch of questions.")

    def __post_init__(self) -> None:
        for name in ("judge", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name}: needed, and not given; set it with --{name}")
        if not 0 <= self.tie_margin < 0.5:
            raise ValueError(f"tie_margin: must be from 0 to below 0.5, got {self.tie_margin}")
        for name in ("shard_size", "score_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or more, got {getattr(self, name)}")
