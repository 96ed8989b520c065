"""What is tried out of a server before it is trusted. Each refusal says what mends it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import PurePath

from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.serving.dialects import Drawn, ServerError, Unreachable
from pad_fast.pipeline.serving.full_load import Load, check_load
from pad_fast.pipeline.serving.server_engine import ServerEngine

logger = logging.getLogger("pad_fast")

Check = Callable[[ServerEngine], object]

QUESTION = "Name three things that one finds in a kitchen, and say what each is for."
TEXT = "The quick brown fox, 1,234 of them: déjà vu?\n\tAnd 'so' on; def f(x): return x**2\n"
SAMPLES, TOKENS = 4, 16
HOT = 2.0  # so that log-probabilities after the temperature would be others
MOST_APART = 0.05  # nats a token, on average: bfloat16 stays below, a wrong temperature far above


def try_out(
    engine: ServerEngine,
    letters: Sequence[int] = (),
    weights: Check = lambda single: None,
    load: Load | None = None,
) -> None:
    """Ask every server of ``engine`` what a run will ask, and compare the answers.

    It has to serve a model of the checkpoint's name and with its vocabulary, to return token ids,
    log-probabilities at temperature 1 while it samples at another one, and the same ones for given
    responses. A server that does not answer is tried when it does.

    Args:
        engine: the servers.
        letters: the tokens of the multiple-choice letters, if there are questions.
        weights: called with an engine of one server at a time; raises :class:`ServerError` if that
            has other weights than it should.
        load: what the run lets a server score at a time; None if it scores nothing.

    Raises:
        ServerError: something of this does not hold, or none of them answers.
    """
    trial, pool = _Trial(engine, letters, weights, load), engine.pool
    there = [url for url in pool.urls if url not in pool.down]
    for url in there:
        try:
            trial.admit(url, pool.limits.patience if len(there) == 1 else 0.0)
        except Unreachable as error:
            pool.down[url] = str(error)
            if len(pool.down) == len(pool.urls):
                raise
    for why in pool.down.values():
        logger.warning("%s; it is taken up when it does", why)
    pool.admit = trial.admit


class _Trial:
    """The trial of one server after the other, also of those that come later.

    Args:
        engine, letters, weights, load: see :func:`try_out`.
    """

    def __init__(
        self, engine: ServerEngine, letters: Sequence[int], weights: Check, load: Load | None
    ) -> None:
        self.engine, self.letters, self.weights, self.load = engine, letters, weights, load
        self.prompt = engine.checkpoint.prompt_ids([{"role": "user", "content": QUESTION}])
        self.known: tuple[str, Drawn] | None = None  # the first server that passed, and a response

    def admit(self, url: str, patience: float = 0.0) -> None:
        """Return if a server passes, else raise ServerError."""
        single = self.engine.alone(url, patience)
        self.weights(single)
        drawn = _try_one(single, self.prompt, self.letters)
        if self.known is None:
            self.known = url, drawn
        else:
            _check_alike(single, self.prompt, *self.known)
        if self.load is not None:
            check_load(single, self.load)


def _try_one(engine: ServerEngine, prompt: list[int], letters: Sequence[int]) -> Drawn:
    """Try out one server; returns a response of it."""
    _check_name(engine)
    _check_vocabulary(engine)
    hot = _drawn(engine, prompt, HOT)
    _check_texts(engine, hot)
    apart = _apart(engine, prompt, hot)
    if apart > MOST_APART:
        _refuse(engine, apart, _apart(engine, prompt, _drawn(engine, prompt, 1.0)))
    if [one.ids for one in _drawn(engine, prompt, HOT)] != [one.ids for one in hot]:
        logger.warning(
            "%s samples other responses to the same seeds; a shard that is sampled again will be "
            "another one (%s mends that, more slowly)",
            engine.first,
            engine.dialect.seeds,
        )
    if letters:
        _check_letters(engine, prompt, letters)
    return hot[0]


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
    url, dialect = engine.first, engine.dialect
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
    same = engine.checkpoint.is_called(served.root) or PurePath(path).name.lower() in known
    if engine.checkpoint.role == "teacher" and not same:
        raise ServerError(
            f"{engine.first} serves {served.model}, and the teacher is {path}; serve that, "
            f"or add --served-model-name {PurePath(path).name} if it is the same under a new name"
        )


def _check_vocabulary(engine: ServerEngine) -> None:
    """Raise ServerError if the server's tokenizer reads a text as other tokens than ours."""
    body = {"model": engine.served.model, "prompt": TEXT, "add_special_tokens": False}
    answer = engine.pool.ask(engine.first, "/tokenize", body)
    if isinstance(answer, dict) and isinstance(answer.get("tokens"), list):
        ours = engine.checkpoint.tokenizer(TEXT, add_special_tokens=False).input_ids
        if answer["tokens"] != ours:
            told = f"reads a text as {len(answer['tokens'])} tokens where ours are {len(ours)}"
            raise _other_vocabulary(engine, told if len(ours) != len(answer["tokens"]) else "")


def _check_texts(engine: ServerEngine, drawn: Sequence[Drawn]) -> None:
    """Raise ServerError if none of the texts is what our tokenizer makes of the tokens."""
    ends, tokenizer = engine.checkpoint.eos_token_ids, engine.checkpoint.tokenizer
    for one in drawn:
        ids = one.ids[:-1] if one.ids[-1] in ends else one.ids
        if max(one.ids) >= len(tokenizer):
            raise _other_vocabulary(engine, f"sampled the token {max(one.ids)} of {len(tokenizer)}")
        if tokenizer.decode(ids).strip("\ufffd") in one.text:  # an end may be half a character
            return
    raise _other_vocabulary(engine, "")


def _other_vocabulary(engine: ServerEngine, told: str) -> ServerError:
    role, path = engine.checkpoint.role, engine.checkpoint.path
    return ServerError(
        f"{engine.first} has another vocabulary than the {role} {path}: it "
        f"{told or 'has other tokens for a text'}; serve the same checkpoint, or give the server "
        f"--tokenizer {path}"
    )


def _check_alike(engine: ServerEngine, prompt: list[int], first: str, known: Drawn) -> None:
    """Raise ServerError if a server gives other log-probabilities than the first one did."""
    [[found]] = engine.token_logps([prompt], [[known.ids]])
    apart = [abs(one - other) for one, other in zip(known.logps, found, strict=True)]
    if sum(apart) > MOST_APART * len(apart):
        raise ServerError(
            f"{engine.first} gives other log-probabilities than "
            f"{'before' if engine.first == first else first}, by {sum(apart) / len(apart):.3g} "
            "nats a token; serve the same weights by all"
        )


def _check_letters(engine: ServerEngine, prompt: list[int], letters: Sequence[int]) -> None:
    """Raise ServerError unless letters get the log-probabilities that they have in a prompt."""
    [asked] = engine.choices([prompt], letters)
    [given] = engine.logps([prompt], [[[letter] for letter in letters]])
    apart = max(abs(one - other) for one, other in zip(asked, given, strict=True))
    # Letters may be very improbable here, where bfloat16 is coarse.
    if apart > 4 * MOST_APART + 0.02 * max(map(abs, given)):
        raise ServerError(
            f"{engine.first} answers questions with other log-probabilities than in a "
            f"prompt, by {apart:.3g} nats; start it with {engine.dialect.raw}"
        )
