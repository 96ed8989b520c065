"""Conversations and responses as a model's chat template and tokenizer write them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pad_fast.conversation.encoding import TextEncoder
from pad_fast.conversation.template import dated, has_powers
from pad_fast.conversation.time_limit import TookTooLong, time_limit

Messages = Sequence[Mapping[str, Any]]
Roles = tuple[str, ...]

SECONDS = 10.0  # for one conversation, of which a template usually takes a thousandth
# Words of marks that stand for a text; the first is taken that the model does not know.
MARKS = ("qzx{}xzq", "vqj{}jqv", "wzk{}kzw", "jxq{}qxj")


class Chat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: of the model.
        options: more arguments for the template.
        owner: how messages name the template.
        model: the model's name, for messages; may be empty.
        now: the time that the template is given; by default the time of the call.

    Notes:
        A template that reads content as a list of parts gets one, and another gets a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        options: Mapping[str, Any] | None = None,
        *,
        owner: str = "the chat template",
        model: str = "",
        now: datetime.datetime | None = None,
    ) -> None:
        self.tokenizer, self.options, self.owner = tokenizer, dict(options or {}), owner
        self.now, self.suffix = now, f" ({model})" if model else ""
        self._parts: dict[Roles, bool] = {}
        self._kept: dict[Roles, list[bool]] = {}
        self._leads: dict[Roles, str] = {}
        self._endless = ""  # what is wrong with a template that took too long

    @cached_property
    def template(self) -> str:
        """The template; a date in it is that of ``now``."""
        return dated(str(self.tokenizer.get_chat_template()), self.now)

    @cached_property
    def _has_powers(self) -> bool:
        return has_powers(self.template)

    @cached_property
    def _mark(self) -> str:
        """A word, with a place for a number, that neither template nor tokens hold."""
        tokens = (str(token.content) for token in self.tokenizer.added_tokens_decoder.values())
        known = "\0".join((str(self.tokenizer.chat_template), *tokens))
        parts = ((mark, mark.split("{}")) for mark in MARKS)
        return next((mark for mark, ends in parts if not any(e in known for e in ends)), MARKS[0])

    def _marker(self, index: int) -> str:
        return self._mark.format(index)

    def _marked(self, roles: Roles, parts: bool = False) -> list[dict[str, Any]]:
        """A conversation of words that can be found again."""
        return [
            {"role": role, "content": _as_parts(mark) if parts else mark}
            for role, mark in ((role, self._marker(index)) for index, role in enumerate(roles))
        ]

    @cached_property
    def frames(self) -> list[str]:
        """What the template writes around texts, without the texts and without control tokens."""
        found = ""
        for roles in (("user", "assistant", "user"), ("user",)):
            try:
                found += self._render(self._marked(roles), False) + "\0"
            except ValueError:  # the template does not take these roles
                continue
        for index in range(3):
            found = found.replace(self._marker(index), "\0")
        return found.split("\0")

    @cached_property
    def encoder(self) -> TextEncoder:
        """Encodes the template's texts. Tokens that frame a turn are control tokens too."""
        added = {str(token.content) for token in self.tokenizer.added_tokens_decoder.values()}
        frame = "\0".join(self.frames) if self.tokenizer.chat_template is not None else ""
        framing = {token for token in added if token in frame and not token.isspace()}
        return TextEncoder(self.tokenizer, framing)

    def rendered(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """A conversation in the template.

        Raises:
            ValueError: the template refuses it.
        """
        return self.encoder.shown(self._hidden(messages, add_generation_prompt))

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The token ids of a conversation up to the start of the response.

        Raises:
            ValueError: the template refuses it.
        """
        return self.encoder.ids(self._hidden(messages, True))

    def conversation_ids(self, messages: Messages) -> list[int]:
        """The token ids of a conversation whose last turn is complete.

        Raises:
            ValueError: the template refuses it.
        """
        return self.encoder.ids(self._hidden(messages, False))

    def response_ids(self, messages: Messages, text: str) -> list[int]:
        """The token ids of a response to a conversation, without the end of the turn.

        They are those that follow the prompt in the rendered conversation.
        """
        if not text:
            return []
        lead = self._lead(tuple(str(message["role"]) for message in messages))
        text = text if text.startswith(lead) else lead + text
        return self.encoder.following(self._hidden(messages, True), text)

    def quoted(self, text: str) -> str:
        """A text of somebody else's, to be shown within a message, that speaks as no role.

        Control tokens stay text wherever they are spelled. Some templates frame turns in plain
        characters, such as ``[INST]`` or ``USER:``; a space goes into those.
        """
        return self._spoken.sub(lambda match: f"{match[0][:-1]} {match[0][-1]}", text)

    @cached_property
    def _spoken(self) -> re.Pattern[str]:
        """What frames turns in plain characters, words alone left out."""
        lines = (part for frame in self.frames for part in self.encoder.plain(frame))
        found = {line.strip() for line in lines}
        signs = sorted((each for each in found if len(each) > 2 and not each.isalnum()), key=len)
        return re.compile("|".join(map(re.escape, reversed(signs))) or r"(?!)")

    def check(self, messages: Messages) -> None:
        """Raise ValueError unless the prompt holds the text of every message.

        Blanks around a text may differ.
        """
        prompt = self.rendered(messages, add_generation_prompt=True)
        kept = self._keeps(messages)
        texts = [(index, text) for index, m in enumerate(messages) for text in _texts(m)]
        # A text may occur within a longer one, so the longer ones are taken out first.
        for index, text in sorted(texts, key=lambda pair: -len(pair[1])):
            if not kept[index] or text not in prompt:
                raise ValueError(
                    f"{self.owner} leaves out text of message {index + 1} of {len(messages)}, the "
                    f"{messages[index].get('role')}'s {text!r:.80}{self.suffix}; change the "
                    "prompt, the template, or chat_template_kwargs"
                )
            prompt = prompt.replace(text, "\0", 1)

    def probes(self, conversations: Sequence[Roles]) -> list[str | None]:
        """Conversations of such roles in the template, None for one that it refuses."""
        found: list[str | None] = []
        for roles in conversations:
            try:
                found.append(self._render(self._marked(roles), roles[-1] != "assistant"))
            except ValueError:
                found.append(None)
        return found

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The token that closes an assistant's turn in the template, else the tokenizer's EOS.

        It may be another one than the EOS, as Gemma's <end_of_turn> is.
        """
        roles = ("user", "assistant")
        try:
            text = self._render(self._formed(self._marked(roles)), False)
        except ValueError:  # the template takes no assistant's turn
            text = ""
        closer = text.rpartition(self._marker(1))[2].lstrip() if self._marker(1) in text else ""
        ids = self.tokenizer(closer, add_special_tokens=False)["input_ids"] if closer else []
        added = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        return ids[0] if ids and ids[0] in added else self.tokenizer.eos_token_id

    def _render(self, messages: Messages, generation: bool) -> str:
        if self._has_powers:
            raise ValueError(
                f"{self.owner} raises a number to a power, which may take without end; write the "
                f"number out{self.suffix}"
            )
        if self._endless:  # each conversation would take as long
            raise ValueError(self._endless)
        try:
            with time_limit(SECONDS):
                return str(
                    self.tokenizer.apply_chat_template(
                        list(messages),
                        chat_template=self.template,
                        tokenize=False,
                        add_generation_prompt=generation,
                        **self.options,
                    )
                )
        except TookTooLong:
            self._endless = (
                f"{self.owner} takes more than {SECONDS:g} seconds for a conversation and may "
                f"never end; change the template{self.suffix}"
            )
            raise ValueError(self._endless) from None
        except Exception as error:  # a template is a program of someone else's
            raise ValueError(
                f"{self.owner} refuses the conversation: {error}{self.suffix}"
            ) from None

    def _hidden(self, messages: Messages, generation: bool) -> str:
        """A conversation in the template, with stand-ins for spelled control tokens."""
        return self._render(self._formed(messages), generation)

    def _formed(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages in the form that the template reads, with spelled control tokens hidden."""
        parts, hide = self._wants_parts(messages), self.encoder.hidden
        formed = []
        for message in messages:
            content = message.get("content")
            if isinstance(content, str):
                content = _as_parts(hide(content)) if parts else hide(content)
            elif isinstance(content, (list, tuple)):
                content = [
                    {**part, "text": hide(part["text"])} if _has_text(part) else part
                    for part in content
                ]
            formed.append({**message, "content": content})
        return formed

    def _wants_parts(self, messages: Messages) -> bool:
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._parts:
            texts, parts = (self._holds(self._marked(roles, parts)) for parts in (False, True))
            self._parts[roles] = all(parts) and not all(texts)
        return self._parts[roles]

    def _keeps(self, messages: Messages) -> list[bool]:
        """Whether the template writes each message of a conversation with such roles.

        Marks are looked for in place of the texts, since a short text may occur by chance.
        """
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._kept:
            try:
                prompt = self._render(self._formed(self._marked(roles)), True)
                self._kept[roles] = [self._marker(index) in prompt for index in range(len(roles))]
            except ValueError:  # the template looks at the texts
                self._kept[roles] = [True] * len(roles)
        return self._kept[roles]

    def _holds(self, marked: Messages) -> list[bool]:
        """Whether the prompt of marked messages holds each of the marks."""
        try:
            prompt = self._render(marked, True)
        except ValueError:
            return [False] * len(marked)
        written_out = "'text':" in prompt or '"text":' in prompt  # the list itself, not its texts
        return [self._marker(index) in prompt and not written_out for index in range(len(marked))]

    def _lead(self, roles: Roles) -> str:
        """The blanks that the template writes between its generation prompt and a response."""
        if roles not in self._leads:
            marked = self._marked((*roles, "assistant"))
            try:
                prompt = self._render(self._formed(marked[:-1]), True)
                text = self._render(self._formed(marked), False)
            except ValueError:
                prompt, text = "", ""
            after = text[len(prompt) :] if text.startswith(prompt) else ""
            lead = after.partition(self._marker(len(roles)))[0]
            self._leads[roles] = lead if lead.isspace() else ""
        return self._leads[roles]


def _as_parts(text: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _has_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _texts(message: Mapping[str, Any]) -> list[str]:
    """The texts of a message whose content is a text or parts, without blanks around them."""
    content = message.get("content")
    parts = content if isinstance(content, (list, tuple)) else _as_parts(content)
    return [part["text"].strip() for part in parts if _has_text(part) and part["text"].strip()]
