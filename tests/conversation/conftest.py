"""Tokenizers of every kind, made once."""

from __future__ import annotations

import made_tokenizers
import pytest


@pytest.fixture(scope="session", params=list(made_tokenizers.KINDS))
def tokenizer(request):
    return made_tokenizers.chat_tokenizer(request.param)
