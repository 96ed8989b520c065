"""A server is let score as many tokens at a time as a run will, before the run relies on it.

vLLM's model runner V1 holds the logits of all tokens of a step, which its measurement of memory at
the start leaves out; a server that has answered single questions may die at the first full step.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, replace

from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.pool import Pool
from pad_fast.pipeline.serving.server_engine import ServerEngine

logger = logging.getLogger("pad_fast")

# Tokens of a load. A step of vLLM's server has 2,048 or 8,192 by default; smaller loads than the
# least fill no step, and larger ones than the most fill no other.
LEAST, MOST = 1024, 16_384
TIME = 600.0  # seconds at least for one request of a load
TEXT = "The quick brown fox jumps over the lazy dog, and 1,234 others see it: so be it then."


@dataclass(frozen=True)
class Load:
    """The most that a run lets one server score at a time.

    Args:
        requests: that are under way together.
        sequences: of each request.
        tokens: of each sequence, half of them a prompt's.
    """

    requests: int
    sequences: int
    tokens: int

    def within(self, window: int | None) -> Load:
        """A load of at most ``MOST`` tokens, or one request, in sequences that fit the window."""
        tokens = min(self.tokens, window or self.tokens)
        requests = min(self.requests, MOST // (self.sequences * tokens))
        return replace(self, requests=max(1, requests), tokens=tokens)

    @property
    def total(self) -> int:
        """The tokens of all sequences together."""
        return self.requests * self.sequences * self.tokens


def check_load(engine: ServerEngine, load: Load) -> None:
    """Let one server score a load.

    Args:
        engine: of that server alone.
        load: what the run will ask at a time.

    Raises:
        ServerError: it does not answer all of it.
    """
    load = load.within(engine.checkpoint.window)
    if load.total < LEAST or load.tokens < 2:
        return
    draw, half = random.Random(0), load.tokens // 2
    known = engine.checkpoint.tokenizer(TEXT, add_special_tokens=False).input_ids
    prompts = [draw.choices(known, k=half) for _ in range(load.requests)]
    responses = [
        [draw.choices(known, k=load.tokens - half) for _ in range(load.sequences)] for _ in prompts
    ]
    limits, pool = engine.pool.limits, engine.pool
    limits = replace(
        limits,
        concurrency=load.requests,
        timeout=max(TIME, limits.timeout),
        patience=0.0,
        attempts=2,
    )
    engine.pool = Pool(pool.urls, limits)  # which starts no server again that dies of it
    try:
        engine.token_logps(prompts, responses)
    except ServerError as error:
        raise ServerError(
            f"{engine.first} failed when it was to score {load.total:,} tokens at a time, as a run "
            f"asks it to ({error}); if it ran out of memory, which its log says, start it with "
            f"{engine.dialect.memory}"
        ) from None
    finally:
        engine.pool = pool
