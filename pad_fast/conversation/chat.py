"""Conversations and responses as a model's chat template and tokenizer write them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pad_fast.conversation.encoding import TextEncoder

Messages = Sequence[Mapping[str, Any]]
Roles = tuple[str, ...]

# What strftime replaces in the formats of chat templates.
DIRECTIVES = ("%Y", "%m", "%d", "%B", "%b", "%A", "%a", "%H", "%I", "%M", "%S", "%p", "%y", "%j")


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

    @cached_property
    def template(self) -> str:
        """The template; a date in it is that of ``now``."""
        template = str(self.tokenizer.get_chat_template())
        if self.now is None or "strftime_now" not in template:
            return template
        # transformers passes no functions to a template, so a macro takes the place of its own.
        values = {directive: self.now.strftime(directive) for directive in DIRECTIVES}
        values |= {f"%-{d[1]}": value.lstrip("0") for d, value in values.items()}
        replaced = "".join(f".replace('{name}', '{value}')" for name, value in values.items())
        macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
        return f"{macro}{{{{ '' }}}}{template}"

    @cached_property
    def encoder(self) -> TextEncoder:
        """Encodes the template's texts. Tokens that frame a turn are control tokens too."""
        added = {str(token.content) for token in self.tokenizer.added_tokens_decoder.values()}
        frame = ""
        if self.tokenizer.chat_template is not None:
            for roles in (("user", "assistant", "user"), ("user",)):
                try:
                    frame += self._render(_marked(roles), False)
                except ValueError:  # the template does not take these roles
                    continue
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
                found.append(self._render(_marked(roles), roles[-1] != "assistant"))
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
            text = self._render(self._formed(_marked(roles)), False)
        except ValueError:  # the template takes no assistant's turn
            text = ""
        closer = text.rpartition(_marker(1))[2].lstrip() if _marker(1) in text else ""
        ids = self.tokenizer(closer, add_special_tokens=False)["input_ids"] if closer else []
        added = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        return ids[0] if ids and ids[0] in added else self.tokenizer.eos_token_id

    def _render(self, messages: Messages, generation: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **self.options,
                )
            )
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
            texts, parts = (self._holds(_marked(roles, parts)) for parts in (False, True))
            self._parts[roles] = all(parts) and not all(texts)
        return self._parts[roles]

    def _keeps(self, messages: Messages) -> list[bool]:
        """Whether the template writes each message of a conversation with such roles.

        Marks are looked for in place of the texts, since a short text may occur by chance.
        """
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._kept:
            try:
                prompt = self._render(self._formed(_marked(roles)), True)
                self._kept[roles] = [_marker(index) in prompt for index in range(len(roles))]
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
        return [_marker(index) in prompt and not written_out for index in range(len(marked))]

    def _lead(self, roles: Roles) -> str:
        """The blanks that the template writes between its generation prompt and a response."""
        if roles not in self._leads:
            marked = _marked((*roles, "assistant"))
            try:
                prompt = self._render(self._formed(marked[:-1]), True)
                text = self._render(self._formed(marked), False)
            except ValueError:
                prompt, text = "", ""
            after = text[len(prompt) :] if text.startswith(prompt) else ""
            lead = after.partition(_marker(len(roles)))[0]
            self._leads[roles] = lead if lead.isspace() else ""
        return self._leads[roles]


def _marker(index: int) -> str:
    """A word that no template writes by itself."""
    return f"qzx{index}xzq"


def _marked(roles: Roles, parts: bool = False) -> list[dict[str, Any]]:
    """A conversation of words that can be found again."""
    return [
        {"role": role, "content": _as_parts(_marker(index)) if parts else _marker(index)}
        for index, role in enumerate(roles)
    ]


def _as_parts(text: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _has_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _texts(message: Mapping[str, Any]) -> list[str]:
    """The texts of a message whose content is a text or parts, without blanks around them."""
    content = message.get("content")
    parts = content if isinstance(content, (list, tuple)) else _as_parts(content)
    return [part["text"].strip() for part in parts if _has_text(part) and part["text"].strip()]
