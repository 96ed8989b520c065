"""A student or teacher on disk or on the hub: configuration, tokenizer, chat template, weights."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pad_fast.device import default_device, release_cached_memory
from pad_fast.pipeline.files import Row, ends_hash
from pad_fast.pipeline.prompts import Message
from pad_fast.training.rows import end_of_turn_id


@dataclass
class Checkpoint:
    """A causal LM. Each part is loaded when it is first used.

    Args:
        role: "student" or "teacher", which messages begin with.
        path: a folder, or a name on the hub.
        revision: hub revision.
        dtype: data type of the weights; auto: as they are stored.
        attn_implementation: attention by its name in transformers.
        template_kwargs: arguments of the chat template.

    Raises:
        ValueError: configuration, weights, tokenizer or chat template cannot be loaded.
    """

    role: str
    path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    template_kwargs: dict[str, Any] | None = None

    @cached_property
    def config(self) -> Any:
        """The transformers configuration."""
        folder = Path(self.path)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ValueError(
                    f"{self.role}: the folder {folder} holds no config.json, so it is not a "
                    "transformers checkpoint"
                )
            if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
                raise ValueError(
                    f"{self.role}: the folder {folder} holds no weights, neither .safetensors "
                    "nor .bin"
                )
        try:
            return AutoConfig.from_pretrained(self.path, revision=self.revision)
        except OSError as error:
            raise ValueError(
                f"{self.role}: {self.path} is neither a folder nor a model that the hub gives: "
                f"{_first_line(error)}"
            ) from None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which has a chat template."""
        _ = self.config  # if the path is wrong, that error is more helpful than the tokenizer's
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.role}: {self.path} has no tokenizer that can be loaded: "
                f"{_first_line(error)}"
            ) from None
        if not tokenizer.chat_template:
            raise ValueError(
                f"{self.role}: the tokenizer of {self.path} has no chat template; add a "
                "chat_template.jinja to the folder"
            )
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The model on the default device, in evaluation mode."""
        _ = self.tokenizer  # a missing one has to fail before the weights are loaded
        attention = (
            {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.path, revision=self.revision, dtype=self.dtype, **attention
        )
        return model.to(default_device()).eval()

    def free(self) -> None:
        """Release the weights' memory for the next model."""
        self.__dict__.pop("model", None)
        gc.collect()
        release_cached_memory()

    @property
    def window(self) -> int | None:
        """The longest sequence that the model was made for, in tokens; None if unknown."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """Every token that ends a response, from the generation config, config and tokenizer."""
        try:
            generation = GenerationConfig.from_pretrained(
                self.path, revision=self.revision or "main"
            ).eos_token_id
        except OSError:  # the file is optional
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
                f"{self.role}: {self.path} names no end-of-sequence token, so no response would "
                "ever end"
            )
        return sorted(found)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation in the chat template, up to the start of the response.

        Raises:
            ValueError: the template refuses the conversation.
        """
        return self.rendered(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]

    def rendered(self, messages: Sequence[Message], **options: Any) -> Any:
        """A conversation in the chat template; ``options`` are those of apply_chat_template."""
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
        """The token that closes an assistant's turn in the template, else one that ends a text."""
        found = end_of_turn_id(self.tokenizer, conversational=True)
        return self.eos_token_ids[0] if found is None else found

    def same_tokenizer(self, other: Checkpoint) -> bool:
        """Whether both models read the same conversation as the same token ids."""
        if (
            self.tokenizer.chat_template != other.tokenizer.chat_template
            or self.eos_token_ids != other.eos_token_ids
        ):
            return False
        backends: list[Any] = [
            getattr(which.tokenizer, "backend_tokenizer", None) for which in (self, other)
        ]
        if None in backends:  # slow tokenizers have no backend to compare
            return False
        return backends[0].to_str() == backends[1].to_str()

    def fingerprint(self) -> Row:
        """What distinguishes this model from others, for the manifest.

        It is the commit on the hub, or a hash over the names, sizes and both ends of the files.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            return {"path": self.path, "commit": getattr(self.config, "_commit_hash", None)}
        files = (path for path in folder.iterdir() if path.is_file())
        shown = sorted(path for path in files if not path.name.startswith("."))
        return {"path": self.path, "sha256": ends_hash(shown)}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
