"""What is tried out of a server before it is trusted. Each refusal says what mends it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.serving.dialects import Drawn, Garbled, Request, ServerError
from pad_fast.pipeline.serving.pool import Pool
from pad_fast.pipeline.serving.server_engine import ServerEngine

logger = logging.getLogger("pad_fast")

QUESTION = "Name three things that one finds in a kitchen, and say what each is for."
TEXT = "The quick brown fox, 1,234 of them: déjà vu?\n\tAnd 'so' on; def f(x): return x**2\n"
SAMPLES, TOKENS = 4, 16
HOT = 2.0  # so that log-probabilities after the temperature would be others
MOST_APART = 0.05  # nats a token, on average: bfloat16 stays below, a wrong temperature far above


def try_out(engine: ServerEngine, letters: Sequence[int] = ()) -> None:
    """Ask every server of ``engine`` what a run will ask, and compare the answers.

    It has to serve a model of the checkpoint's name and with its vocabulary, to return token ids,
    log-probabilities at temperature 1 while it samples at another one, and the same ones for given
    responses.

    Args:
        engine: the servers.
        letters: the tokens of the multiple-choice letters, if there are questions.

    Raises:
        ServerError: something of this does not hold.
    """
    _check_name(engine)
    for url in engine.pool.urls:
        _check_vocabulary(engine, url)
    prompt = engine.checkpoint.prompt_ids([{"role": "user", "content": QUESTION}])
    hot = _drawn(engine, prompt, HOT)
    _check_texts(engine, hot)
    apart = _apart(engine, prompt, hot)
    if apart > MOST_APART:
        _refuse(engine, apart, _apart(engine, prompt, _drawn(engine, prompt, 1.0)))
    if [one.ids for one in _drawn(engine, prompt, HOT)] != [one.ids for one in hot]:
        logger.warning(
            "%s samples other responses to the same seeds; a shard that is sampled again will be "
            "another one (%s mends that, more slowly)",
            engine.pool.urls[0],
            engine.dialect.seeds,
        )
    if letters:
        _check_letters(engine, prompt, letters)
    _check_alike(engine, prompt, hot[0])
    engine.watch(_canary(engine, prompt, hot[0]))


def _drawn(engine: ServerEngine, prompt: list[int], temperature: float) -> list[Drawn]:
    [group] = engine.drawn([prompt], SAMPLES, Sampling(TOKENS, temperature), seed=1)
    return group


def _apart(engine: ServerEngine, prompt: list[int], drawn: Sequence[Drawn]) -> float:
    """The mean difference, in nats a token, of sampling and of given log-probabilities."""
    [given] = engine.token_logps([prompt], [[one.ids for one in drawn]])
    apart = [
        abs(mine - other)
        for one, logps in zip(drawn, given, strict=True)
        for mine, other in zip(one.logps, logps, strict=True)
    ]
    return sum(apart) / len(apart)


def _refuse(engine: ServerEngine, hot: float, plain: float) -> None:
    url, dialect = engine.pool.urls[0], engine.dialect
    if plain <= MOST_APART:
        raise ServerError(
            f"{url} returns log-probabilities after the temperature: at {HOT:g} they are off by "
            f"{hot:.3g} nats a token, at 1 by {plain:.2g}; start it with {dialect.raw}"
        )
    raise ServerError(
        f"{url} gives sampled tokens other log-probabilities than the same tokens in a prompt, by "
        f"{plain:.3g} nats a token; start it without a quantised cache (--kv-cache-dtype auto), "
        "speculative decoding or adapters"
    )


def _check_name(engine: ServerEngine) -> None:
    """Raise ServerError if the served model's name tells that it is another one."""
    path, served = engine.checkpoint.path, engine.served
    known = {PurePath(name).name.lower() for name in (served.model, served.root)}
    if engine.checkpoint.role == "teacher" and PurePath(path).name.lower() not in known:
        raise ServerError(
            f"{engine.pool.urls[0]} serves {served.model}, and the teacher is {path}; serve that, "
            f"or add --served-model-name {PurePath(path).name} if it is the same under a new name"
        )


def _check_vocabulary(engine: ServerEngine, url: str) -> None:
    """Raise ServerError if the server's tokenizer reads a text as other tokens than ours."""
    body = {"model": engine.served.model, "prompt": TEXT, "add_special_tokens": False}
    answer = engine.pool.ask(url, "/tokenize", body)
    if isinstance(answer, dict) and isinstance(answer.get("tokens"), list):
        ours = engine.checkpoint.tokenizer(TEXT, add_special_tokens=False).input_ids
        if answer["tokens"] != ours:
            told = f"reads a text as {len(answer['tokens'])} tokens where ours are {len(ours)}"
            raise _other_vocabulary(engine, url, told if len(ours) != len(answer["tokens"]) else "")


def _check_texts(engine: ServerEngine, drawn: Sequence[Drawn]) -> None:
    """Raise ServerError if none of the texts is what our tokenizer makes of the tokens."""
    ends, tokenizer = engine.checkpoint.eos_token_ids, engine.checkpoint.tokenizer
    for one in drawn:
        ids = one.ids[:-1] if one.ids[-1] in ends else one.ids
        if max(one.ids) >= len(tokenizer):
            raise _other_vocabulary(
                engine, engine.pool.urls[0], f"sampled the token {max(one.ids)} of {len(tokenizer)}"
            )
        if tokenizer.decode(ids).strip("\ufffd") in one.text:  # an end may be half a character
            return
    raise _other_vocabulary(engine, engine.pool.urls[0], "")


def _other_vocabulary(engine: ServerEngine, url: str, told: str) -> ServerError:
    role, path = engine.checkpoint.role, engine.checkpoint.path
    return ServerError(
        f"{url} has another vocabulary than the {role} {path}: it "
        f"{told or 'has other tokens for a text'}; serve the same checkpoint, or give the server "
        f"--tokenizer {path}"
    )


def _check_alike(engine: ServerEngine, prompt: list[int], known: Drawn) -> None:
    """Raise ServerError if one of the servers gives other log-probabilities than the rest."""
    found = {}
    for url in engine.pool.urls:
        single = Pool([url], engine.pool.limits, engine.pool.restart)
        [[found[url]]] = single.run([engine.dialect.scoring(prompt, [known.ids])])
    first = engine.pool.urls[0]
    for url, logps in found.items():
        apart = [abs(one - other) for one, other in zip(found[first], logps, strict=True)]
        if sum(apart) > MOST_APART * len(apart):
            raise ServerError(
                f"{url} gives other log-probabilities than {first}, by "
                f"{sum(apart) / len(apart):.3g} nats a token; serve the same weights by all"
            )


def _check_letters(engine: ServerEngine, prompt: list[int], letters: Sequence[int]) -> None:
    """Raise ServerError unless letters get the log-probabilities that they have in a prompt."""
    [asked] = engine.choices([prompt], letters)
    [given] = engine.logps([prompt], [[[letter] for letter in letters]])
    apart = max(abs(one - other) for one, other in zip(asked, given, strict=True))
    # Letters may be very improbable here, where bfloat16 is coarse.
    if apart > 4 * MOST_APART + 0.02 * max(map(abs, given)):
        raise ServerError(
            f"{engine.pool.urls[0]} answers questions with other log-probabilities than in a "
            f"prompt, by {apart:.3g} nats; start it with {engine.dialect.raw}"
        )


def _canary(engine: ServerEngine, prompt: list[int], known: Drawn) -> Request:
    """A request whose answer tells whether a server that was gone has the same weights."""
    request = engine.dialect.scoring(prompt, [known.ids])

    def read(answer: Any) -> None:
        [logps] = request.read(answer)
        apart = [abs(one - other) for one, other in zip(known.logps, logps, strict=True)]
        if sum(apart) > MOST_APART * len(apart):
            raise Garbled("other weights than before")

    return Request(request.path, request.body, read, 0)
