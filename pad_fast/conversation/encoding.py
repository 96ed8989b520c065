"""Text as token ids: control tokens from the template alone, and responses as they follow it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from pad_fast.files.json_text import check_text

# A stand-in for a control token is a character that Unicode reserves for programs, so that no text
# has it, and one that numbers the token. The first says who wrote the token: somebody in a message
# or a response, or the template.
SPELLED, WRITTEN = "\ufdd0", "\ufdd1"
NUMBERS = 0x100000  # the first character of a private use area
MOST = 0xFFFE  # characters in it
_SPELLED = re.compile(f"{SPELLED}([{chr(NUMBERS)}-{chr(NUMBERS + MOST - 1)}])")

# What a text may follow without merging with it, where it merges with what it really follows.
ANCHORS = ("\n", "a", ".", "0")

REPLACEMENT = "\ufffd"  # what bytes that are no whole character decode to


def control_tokens(tokenizer: Any) -> set[str]:
    """The tokens that the tokenizer marks as special."""
    added = tokenizer.added_tokens_decoder.values()
    return {str(token) for token in tokenizer.all_special_tokens} | {
        token.content for token in added if token.special
    }


class TextEncoder:
    """Turns text into token ids.

    Args:
        tokenizer: of the model that reads the text.
        framing: more control tokens than those that the tokenizer marks as special.

    Notes:
        A text is passed through :meth:`hidden` before a chat template sees it. A control token that
        is spelled in it, such as ``<|im_end|>``, then stays text: it is encoded as what a reader
        sees, and does not end a turn.
    """

    def __init__(self, tokenizer: Any, framing: Collection[str] = ()) -> None:
        self.tokenizer = tokenizer
        # The longest first, since one token may begin with another. A word or a sign is text even
        # where it serves as a control token, as "!" does for padding.
        found = sorted(control_tokens(tokenizer) | set(framing), key=lambda token: -len(token))
        self._control = [each for each in found if len(each) > 2 and not each.isalnum()][:MOST]
        self._number = {token: number for number, token in enumerate(self._control)}
        self._pattern = re.compile("|".join(map(re.escape, self._control)) or r"(?!)")

    def hidden(self, text: str) -> str:
        """The text with stand-ins for the control tokens that it spells."""
        return self._pattern.sub(lambda match: self._stand_in(SPELLED, match[0]), text)

    def shown(self, text: str) -> str:
        """The text with its control tokens spelled, the inverse of :meth:`hidden`."""
        return _SPELLED.sub(lambda match: self._control[ord(match[1]) - NUMBERS], text)

    def _stand_in(self, written_by: str, token: str) -> str:
        return written_by + chr(NUMBERS + self._number[token])

    def ids(self, text: str) -> list[int]:
        """The token ids of a text that may hold stand-ins. Nothing is added in front or behind."""
        check_text(text)
        if not _SPELLED.search(text):
            return self._encoded(text)
        if self._literal is None:
            return [token for part in self._halved(text) for token in self._encoded(part)]
        written = self._pattern.sub(lambda match: self._stand_in(WRITTEN, match[0]), text)
        return list(self._literal.encode(self.shown(written), add_special_tokens=False).ids)

    def plain(self, text: str) -> list[str]:
        """The lines of a text without the control tokens that it spells."""
        return self._pattern.sub("\n", text).splitlines()

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _halved(self, text: str) -> Iterator[str]:
        """The parts of a text in which each spelled control token is cut in two.

        A tokenizer that is no Rust one finds the token nowhere then.
        """
        for place, part in enumerate(_SPELLED.split(text)):
            token = self._control[ord(part) - NUMBERS] if place % 2 else part
            middle = len(token) // 2 if place % 2 else 0
            yield from filter(None, (token[:middle], token[middle:]))

    @cached_property
    def _literal(self) -> Tokenizer | None:
        """The tokenizer with its control tokens renamed to stand-ins.

        No text spells a control token here. Renaming keeps every id, and takes the token from the
        vocabulary too, where a Unigram model would find it; ``split_special_tokens`` does not.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        stand_in = {token: self._stand_in(WRITTEN, token) for token in self._control}
        content = json.loads(backend.to_str())
        content.update(truncation=None, padding=None, post_processor=None)
        for token in content["added_tokens"]:
            if token["content"] in stand_in:
                name = stand_in[token["content"]]
                token.update(content=name, special=False, normalized=False)
        model = content["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {stand_in.get(name, name): n for name, n in model["vocab"].items()}
        else:
            model["vocab"] = [(stand_in.get(name, name), score) for name, score in model["vocab"]]
        if model.get("unk_token") in stand_in:
            model["unk_token"] = stand_in[model["unk_token"]]
        return Tokenizer.from_str(json.dumps(content))

    def following(self, before: str, text: str) -> list[int]:
        """The token ids of a text that follows another one.

        A text that is encoded alone may begin with a space that is not there: SentencePiece adds
        it at the start. So the text is encoded together with the end of ``before``. If the two
        merge at their border, another text that does not merge takes the place of ``before``.

        Args:
            before: what the text follows; it may hold stand-ins.
            text: the text, without stand-ins; the control tokens that it spells stay text.
        """
        text = self.hidden(text)
        if not text:
            return []
        for anchor in (self._end_of(before), *ANCHORS):
            start, whole = self.ids(anchor), self.ids(anchor + text)
            if len(whole) > len(start) and whole[: len(start)] == start:
                return whole[len(start) :]
        return self.ids(text)

    def _end_of(self, text: str) -> str:
        """The end of a text from its last control token or line on, which decides what follows."""
        start = max(text.rfind("\n", 0, max(0, len(text) - 1)), 0)
        for match in self._pattern.finditer(text, start):
            start = match.start()
        return text[start:]

    def prompt(self, text: str) -> list[int]:
        """The token ids of a prompt that is no conversation.

        The beginning-of-sequence token is added where the tokenizer adds one and the text does not
        begin with it. Nothing is added at the end, since the response follows there. Control tokens
        in the text are control tokens: such a prompt is often a conversation that was rendered.
        """
        ids, first = self.ids(text), self._first_ids
        return ids if ids[: len(first)] == first else [*first, *ids]

    @cached_property
    def _first_ids(self) -> list[int]:
        """What the tokenizer puts in front of every text."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = list(self.tokenizer("a")["input_ids"])
        starts = range(len(whole) - len(bare) + 1)
        return whole[: next((i for i in starts if whole[i : i + len(bare)] == bare), 0)]

    def text(self, ids: Sequence[int]) -> str:
        """The text of a response's ids, which do not hold its end token.

        All control tokens are spelled. The bytes of a last character that was cut are left out.
        """
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if not text.endswith(REPLACEMENT):
            return text
        spelled = self.following("\n", REPLACEMENT)
        meant = bool(spelled) and list(ids[-len(spelled) :]) == spelled
        return text if meant else text.rstrip(REPLACEMENT)
