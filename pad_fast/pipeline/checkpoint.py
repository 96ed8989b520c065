"""A student or teacher on disk or on the hub: configuration, tokenizer, chat template, weights."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)

from pad_fast.conversation.chat import Chat
from pad_fast.device import default_device, release_unused_memory
from pad_fast.files.checksums import ends_hash
from pad_fast.files.stored_rows import Row
from pad_fast.files.system_errors import first_line
from pad_fast.files.weights import UNREAD, check_model_folder, weight_files
from pad_fast.models.auto import model_class
from pad_fast.models.whole import check_values, whole_models
from pad_fast.pipeline import hub
from pad_fast.pipeline.costs import measured
from pad_fast.pipeline.data_types import stored_dtype
from pad_fast.pipeline.prompts import Message
from pad_fast.progress.bar import doing

NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # whose question would wait for an answer
# Conversations of all roles and with both ends, whose renderings are compared.
PROBES = (("user",), ("system", "user"), ("user", "assistant"), ("user", "assistant", "user"))
# What a repository on the hub may hold beside the weights that a server reads.
NOT_SERVED = ["original/*", "consolidated*", "onnx/*", "*.pth", "*.gguf", "*.h5", "*.msgpack"]
# What tokenizer.json says of texts that are padded, cut or given ends, and of decoding.
NOT_READING = ("truncation", "padding", "post_processor", "decoder")


@dataclass
class Checkpoint:
    """A causal LM. Each part is loaded when it is first used.

    Args:
        role: "student" or "teacher", which messages begin with.
        path: a folder, or a name on the hub.
        revision: hub revision.
        dtype: data type of the weights; auto: as they are stored, see :attr:`loaded_dtype`.
        attn_implementation: attention by its name in transformers.
        template_kwargs: arguments of the chat template.
        now: the time that the chat template is given; by default that of the call.
        most_tokens: the longest sequence that whatever runs the model takes, if that is less than
            the model's own window.
        system_prompt: instructions that precede every conversation of this model.
        check: compares the files with those that were saved. It is called with False before any is
            read, for all but the weights, and with True before these.
        served_from: the folder that a server of the run's own has loaded, where it is not ``path``.
        served: whether servers elsewhere run the model, whose weights need not be on this disk.

    Raises:
        ValueError: configuration, weights, tokenizer or chat template cannot be loaded.
    """

    role: str
    path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    template_kwargs: dict[str, Any] | None = None
    now: datetime.datetime | None = None
    most_tokens: int | None = None
    system_prompt: str | None = None
    check: Callable[[bool], None] | None = None
    served_from: str | None = None
    served: bool = False

    def to_serve(self) -> str:
        """What a server is given that the run starts: ``path``, or the folder of its revision.

        A server would take the newest revision of a name.

        Raises:
            ValueError: the hub does not give the revision.
        """
        if self.revision is None or Path(self.path).is_dir():
            return self.path
        commit = getattr(self.config, "_commit_hash", None) or self.revision
        try:
            with doing(f"downloading the {self.role}"):
                self.served_from = snapshot_download(
                    self.path, revision=commit, ignore_patterns=NOT_SERVED
                )
        except OSError as error:
            raise ValueError(
                f"{self.role}_revision: {self.path} at {self.revision} cannot be downloaded for "
                f"{self.role}_serve: {hub.failure(error) or first_line(error)}"
            ) from None
        return self.served_from

    def is_called(self, name: str) -> bool:
        """Whether a server that has loaded ``name`` has loaded this model."""
        return any(same_path(own, name) for own in (self.path, self.served_from) if own)

    def compare(self, *, weights: bool) -> None:
        """Raise ValueError if weights, or all other files, differ from those that were saved."""
        if self.check is not None:
            self.check(weights)

    @cached_property
    def config(self) -> Any:
        """The transformers configuration."""
        folder = Path(self.path)
        self.compare(weights=False)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ValueError(
                    f"{self.role}: the folder {folder} holds no config.json, so it is not a "
                    "transformers checkpoint"
                )
            if not self.served:
                self.check_weights()
        try:
            found, _ = PreTrainedConfig.get_config_dict(self.path, revision=self.revision)
        except OSError as error:
            raise ValueError(
                f"{self.role}: {self.path} is neither a folder nor a model that the hub gives: "
                f"{hub.failure(error) or first_line(error)}"
            ) from None
        if "auto_map" in found and found.get("model_type") not in CONFIG_MAPPING:
            raise ValueError(
                f"{self.role}: {self.path} brings code of its own ({_code(found)} in the auto_map "
                "of config.json), and a run executes no code of a model (trust_remote_code is "
                "off); take a model of an architecture that transformers has"
            )
        try:
            return AutoConfig.from_pretrained(self.path, revision=self.revision, **NO_CODE)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self.role}: the config.json of {self.path} cannot be read: {first_line(error)}"
            ) from None

    def has_weights(self) -> bool:
        """Whether a folder holds files of weights; those of a name are on the hub."""
        folder = Path(self.path)
        return not folder.is_dir() or bool(weight_files(folder))

    def check_weights(self) -> None:
        """Raise ValueError if a folder holds no weights, or some that are damaged."""
        if not self.has_weights():
            raise ValueError(
                f"{self.role}: the folder {self.path} holds no weights, neither .safetensors nor "
                ".bin"
            )
        try:
            check_model_folder(Path(self.path))
        except ValueError as error:
            raise ValueError(f"{self.role}: {error}") from None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which has a chat template."""
        _ = self.config  # if the path is wrong, that error is more helpful than the tokenizer's
        try:
            with measured(f"load {self.role}", "model"):  # it was dropped with the last model
                tokenizer = AutoTokenizer.from_pretrained(
                    self.path, revision=self.revision, **NO_CODE
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.role}: {self.path} has no tokenizer that can be loaded: "
                f"{first_line(error)}; save the model's tokenizer there (save_pretrained)"
            ) from None
        if not tokenizer.chat_template:
            raise ValueError(
                f"{self.role}: the tokenizer of {self.path} has no chat template; add a "
                "chat_template.jinja to the folder"
            )
        return tokenizer

    @property
    def model_class(self) -> Any:
        """The class of transformers that loads the model."""
        config = self.config
        try:
            return model_class(config)
        except ValueError as error:
            raise ValueError(f"{self.role}: {self.path} {error}") from None

    @property
    def vocabulary(self) -> int:
        """The number of token ids that the model can read and predict."""
        return int(self.config.get_text_config().vocab_size)

    @cached_property
    def known_ids(self) -> dict[int, str]:
        """The tokens of the tokenizer by their ids."""
        return {index: token for token, index in self.tokenizer.get_vocab().items()}

    def ids_without_token(self) -> list[int]:
        """The ids that the model can predict and the tokenizer has no token for.

        Embeddings are often padded to a round number of rows.
        """
        return sorted(set(range(self.vocabulary)) - self.known_ids.keys())

    def check_ids(self, ids: Iterable[int], what: str) -> None:
        """Raise ValueError for ids beyond the embedding, which the model could not read.

        Args:
            ids: token ids.
            what: where they are from, for the message.
        """
        largest = max(ids, default=0)
        if largest >= self.vocabulary:
            raise ValueError(
                f"{self.role}: {what} has the token {self.known_ids.get(largest, largest)!r} with "
                f"the id {largest}, and the embedding of {self.path} has {self.vocabulary} rows "
                f"(vocab_size) for {max(self.known_ids, default=0) + 1} ids of the tokenizer; call "
                "model.resize_token_embeddings(len(tokenizer)) and save both, or take the "
                "tokenizer that belongs to the model"
            )

    @cached_property
    def model(self) -> Any:
        """The model on the default device, in evaluation mode."""
        return self.load(default_device())

    def load(self, device: Any) -> Any:
        """The model on a device, in evaluation mode, which is not kept."""
        _ = self.tokenizer  # a missing one has to fail before the weights are loaded
        if self.served:
            self.check_weights()
        try:
            loading = doing(f"loading the {self.role.replace('_', ' ')}")
            with whole_models(), loading, measured(f"load {self.role}", "model") as work:
                self.compare(weights=True)
                model: Any = self.model_class.from_pretrained(
                    self.path,
                    revision=self.revision,
                    dtype=self.loaded_dtype,
                    **self.attention_argument,
                    **NO_CODE,
                )
                check_values(model, f"{self.role}: {self.path}")
                work.add(1)
                return model.to(device).eval()
        except (SafetensorError, EOFError, UnpicklingError) as error:
            raise ValueError(
                f"{self.role}: the weights of {self.path} are damaged ({first_line(error)}); copy "
                "or download them again"
            ) from None

    @property
    def loaded_dtype(self) -> torch.dtype:
        """The data type that the weights are loaded in, with "auto" resolved."""
        return stored_dtype(self, self.dtype)

    @property
    def attention_argument(self) -> dict[str, str]:
        """The attention as an argument of ``from_pretrained``, none if it was not set."""
        name = self.attn_implementation
        return {"attn_implementation": name} if name else {}

    def free(self) -> None:
        """Release the memory of weights and tokenizer, which are loaded anew if they are needed."""
        for name in ("model", "tokenizer", "known_ids", "chat"):
            self.__dict__.pop(name, None)
        release_unused_memory()

    @property
    def window(self) -> int | None:
        """The longest sequence that the model can be given, in tokens; None if unknown."""
        own = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(filter(None, (own, self.most_tokens)), default=None)

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

    @cached_property
    def chat(self) -> Chat:
        """The tokenizer with its chat template."""
        return Chat(
            self.tokenizer,
            self.template_kwargs,
            owner=f"the {self.role}'s chat template",
            model=self.path,
            now=self.now,
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation in the chat template, up to the start of the response.

        Raises:
            ValueError: the template refuses the conversation.
        """
        return self.chat.prompt_ids(self.messages(messages))

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation as this model is shown it, with its ``system_prompt`` at the beginning.

        A system message of the conversation's own follows in the same message.
        """
        if self.system_prompt is None:
            return list(messages)
        text, rest = self.system_prompt, list(messages)
        if rest and rest[0]["role"] == "system":
            text, rest = f"{text}\n\n{rest[0]['content']}", rest[1:]
        return [{"role": "system", "content": text}, *rest]

    @cached_property
    def end_of_turn_id(self) -> int:
        """The token that closes an assistant's turn in the template, else one that ends a text."""
        found = self.chat.end_of_turn_id
        return self.eos_token_ids[0] if found is None else found

    def response_ids(self, messages: Sequence[Message], text: str, reason: str) -> list[int]:
        """The token ids of a response after a conversation, as this model reads both.

        Args:
            messages: the conversation, without the model's own ``system_prompt``.
            text: the response.
            reason: why it ended; after "stop" the end of the turn is added.
        """
        ids = self.chat.response_ids(self.messages(messages), text)
        return [*ids, self.end_of_turn_id] if reason == "stop" else ids

    def reads_prompts_as(self, other: Checkpoint) -> bool:
        """Whether both models are given the same token ids for a prompt."""
        return self.system_prompt == other.system_prompt and self.same_tokenizer(other)

    def same_tokenizer(self, other: Checkpoint) -> bool:
        """Whether both models read the same conversation as the same token ids.

        Templates and what they render are compared, since a template may write a token such as the
        BOS that it is given, and so is how a text is split into tokens.
        """
        mine, others = self.chat, other.chat
        return (
            self.eos_token_ids == other.eos_token_ids
            and (mine.template, mine.options) == (others.template, others.options)
            and mine.probes(PROBES) == others.probes(PROBES)
            and self._reading is not None
            and self._reading == other._reading
        )

    @cached_property
    def _reading(self) -> str | None:
        """A hash of how the tokenizer reads text; None for a slow one, which cannot be compared."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        content = json.loads(backend.to_str())
        kept = {name: value for name, value in content.items() if name not in NOT_READING}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def fingerprint(self) -> Row:
        """What distinguishes this model from others, for the manifest.

        It is the commit on the hub, or a hash over the names, sizes and both ends of the files that
        are read to load it. Its card is none of them.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            return {"path": self.path, "commit": getattr(self.config, "_commit_hash", None)}
        files = (path for path in folder.iterdir() if path.is_file())
        read = (path for path in files if not path.name.startswith(".") and path.name not in UNREAD)
        return {"path": self.path, "sha256": ends_hash(sorted(read))}


def same_path(one: str, other: str) -> bool:
    """Whether two folders, or names on the hub, are the same."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def _code(config: dict[str, Any]) -> str:
    """The first class that a config names of a model's own code."""
    return str(next(iter(config["auto_map"].values()), "nothing"))
