"""A student or teacher: its tokenizer and chat template, its weights, loaded when first needed and freed before the next one's."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pad_fast.pipeline.files import Row
from pad_fast.pipeline.prompts import Message
from pad_fast.training.rows import end_of_turn_id

FINGERPRINT_BYTES = (
    1 << 20
)  # of each end of a file: weights of many gigabytes need not be read whole


@dataclass
class Checkpoint:
    """A causal LM on disk or on the hub. ValueError names `role` where a tokenizer or a chat template is missing."""

    role: str  # "student" or "teacher", for messages
    path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    template_kwargs: dict[str, Any] | None = None

    @cached_property
    def config(self) -> Any:
        folder = Path(self.path)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ValueError(
                    f"{self.role}: the folder {folder} holds no config.json, so it is no transformers checkpoint"
                )
            if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
                raise ValueError(
                    f"{self.role}: the folder {folder} holds no weights, neither .safetensors nor .bin"
                )
        try:
            return AutoConfig.from_pretrained(self.path, revision=self.revision)
        except OSError as error:
            raise ValueError(
                f"{self.role}: {self.path} is neither a folder nor a model that the hub gives: {_first_line(error)}"
            ) from None

    @cached_property
    def tokenizer(self) -> Any:
        _ = self.config  # a wrong path is the more helpful error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.role}: {self.path} has no tokenizer that can be loaded: {_first_line(error)}"
            ) from None
        if not tokenizer.chat_template:
            raise ValueError(
                f"{self.role}: the tokenizer of {self.path} has no chat template; add a chat_template.jinja to the folder"
            )
        return tokenizer

    @cached_property
    def model(self) -> Any:
        _ = self.tokenizer  # the same weights without their tokenizer would fail only later
        attention = (
            {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.path, revision=self.revision, dtype=self.dtype, **attention
        )
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def free(self) -> None:
        """Drop the weights, so that the next model finds the memory empty."""
        self.__dict__.pop("model", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def window(self) -> int | None:
        """The most tokens that the model was made for, where its config says so."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """Every token that ends a response: those of the generation config, of the config and of the tokenizer."""
        try:
            generation = GenerationConfig.from_pretrained(
                self.path, revision=self.revision or "main"
            ).eos_token_id
        except OSError:  # a checkpoint may do without that file
            generation = None
        found = set()
        for value in (
            generation,
            self.config.get_text_config().eos_token_id,
            self.tokenizer.eos_token_id,
        ):
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        if not found:
            raise ValueError(
                f"{self.role}: {self.path} names no end-of-sequence token, so no response would ever end"
            )
        return sorted(found)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation through the chat template, up to where the response begins. ValueError where the template refuses it."""
        return self.rendered(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]

    def rendered(self, messages: Sequence[Message], **options: Any) -> Any:
        """The conversation through the chat template; `options` are those of transformers' apply_chat_template."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), **options, **self.template_kwargs or {}
            )
        except TemplateError as error:
            raise ValueError(
                f"the {self.role}'s chat template refuses the conversation: {error}"
            ) from None

    @cached_property
    def end_of_turn_id(self) -> int:
        """The token with which the chat template closes an assistant's turn, or else one that ends a sequence."""
        found = end_of_turn_id(self.tokenizer, conversational=True)
        return self.eos_token_ids[0] if found is None else found

    def same_tokenizer(self, other: Checkpoint) -> bool:
        """Whether both turn the same conversation into the same ids: the ids of one may then be given to the other."""
        if (
            self.tokenizer.chat_template != other.tokenizer.chat_template
            or self.eos_token_ids != other.eos_token_ids
        ):
            return False
        backends: list[Any] = [
            getattr(which.tokenizer, "backend_tokenizer", None) for which in (self, other)
        ]
        if None in backends:  # a tokenizer without a tokenizer.json
            return False
        return backends[0].to_str() == backends[1].to_str()

    def fingerprint(self) -> Row:
        """What tells this model from others: the hub's commit, or a hash over names, sizes and ends of the folder's files."""
        folder = Path(self.path)
        if not folder.is_dir():
            return {"path": self.path, "commit": getattr(self.config, "_commit_hash", None)}
        digest = hashlib.sha256()
        for file in sorted(
            path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
        ):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(FINGERPRINT_BYTES))
                stream.seek(max(0, size - FINGERPRINT_BYTES))
                digest.update(stream.read())
        return {"path": self.path, "sha256": digest.hexdigest()}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
