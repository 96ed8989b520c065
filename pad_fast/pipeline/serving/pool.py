"""Many requests to several servers at a time, of which each is answered once.

Every URL has as many slots as it may have requests at a time. A URL that does not answer is left
alone, its requests go to the others, and its slots come back when it answers again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import (
    AsyncRetrying,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential,
    wait_random_exponential,
)

from pad_fast.pipeline.serving import connection
from pad_fast.pipeline.serving.connection import WANTS_KEY, described, no_key
from pad_fast.pipeline.serving.dialects import Garbled, Request, ServerError, Unreachable

logger = logging.getLogger("pad_fast")

AGAIN = {408, 409, 425, 429, 500}  # an answer of the server, which the same request may not get
DOWN = {502, 503, 504}  # a proxy's or a starting server's: nothing is answered there now
CONNECT = 10.0  # seconds for a connection, and for the question whether a server is there


@dataclass(frozen=True)
class Limits:
    """How patiently servers are asked.

    Args:
        concurrency: requests to each URL at a time.
        timeout: seconds that one request may take.
        patience: seconds for which all URLs may be out of reach at a time; 0 gives up at once.
        attempts: how often one request is sent before it is given up.
        pause: seconds before the second attempt, which double from then on.
    """

    concurrency: int = 64
    timeout: float = 600.0
    patience: float = 900.0
    attempts: int = 8
    pause: float = 1.0


class _Again(Exception):
    """An attempt that failed in a way that may not repeat itself, and what to do if it does."""

    def __init__(self, why: str, mend: str = "mend the server") -> None:
        super().__init__(why)
        self.mend = mend


class Pool:
    """The servers of one model.

    Args:
        urls: of the servers, without ``/v1``.
        limits: concurrency, time-outs, patience.
        restart: called before a URL that does not answer is asked again; it may start the server
            anew, or raise :class:`ServerError` if that is hopeless.
    """

    def __init__(
        self,
        urls: Sequence[str],
        limits: Limits,
        restart: Callable[[str], object] = lambda url: None,
    ) -> None:
        self.urls, self.limits, self.restart = tuple(urls), limits, restart
        self.down: dict[str, str] = {}  # URLs that do not answer, and why
        self.admit: Callable[[str], object] = lambda url: None  # see :meth:`take_up`

    def run(
        self, requests: Sequence[Request], progress: Callable[[int], object] = lambda count: None
    ) -> list[Any]:
        """The answers to ``requests``, in their order.

        Raises:
            ServerError: all URLs stay out of reach, a server refuses a request, or one request
                fails again and again.
        """
        return asyncio.run(_Call(self).run(requests, progress)) if requests else []

    def take_up(self, url: str) -> None:
        """Ask a URL again that answers, if ``admit``, which tries it out, raises no ServerError."""
        try:
            self.admit(url)
        except Unreachable as error:
            self.down[url] = str(error)
            raise
        except ServerError as error:
            if self.down[url] != str(error):
                logger.warning("a server that answers now is not used: %s", error)
            self.down[url] = str(error)
            raise
        del self.down[url]
        logger.warning("%s answers and is used", url)

    def ask(self, url: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of one server at a path, or of ``body`` sent there; None without such a path.

        Raises:
            Unreachable: the server does not answer three times.
            ServerError: it answers something else than JSON, or wants a key.
        """
        method = "GET" if body is None else "POST"
        retrying = Retrying(
            retry=retry_if_exception_type(httpx.TransportError),
            wait=wait_exponential(self.limits.pause),
            stop=stop_after_attempt(3),
            reraise=True,
        )
        try:
            with connection.client(CONNECT) as asking:
                found = retrying(asking.request, method, url + path, json=body)
            if found.status_code in WANTS_KEY:
                raise ServerError(no_key(url, found.status_code))
            if found.status_code in DOWN:
                raise Unreachable(f"{url} does not answer: status {found.status_code}")
            if found.status_code in (404, 405, 501):
                return None
            found.raise_for_status()
            return found.json()
        except ServerError:
            raise
        except httpx.TransportError as error:
            raise Unreachable(f"{url} does not answer: {described(error)}") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ServerError(f"{url} does not answer: {described(error)}") from None


class _Call:
    """One call of :meth:`Pool.run`, with what lives as long as its event loop."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.limits = pool, pool.limits
        self.free: asyncio.Queue[str] = asyncio.Queue()
        self.parked: dict[str, int] = dict.fromkeys(pool.urls, 0)
        self.revivals: dict[str, asyncio.Task] = {}
        self.hopeless: Exception | None = None
        self.slow: set[str] = set()  # URLs of which a request took too long
        self.silent_since = time.monotonic()

    async def run(
        self, requests: Sequence[Request], progress: Callable[[int], object]
    ) -> list[Any]:
        """See :meth:`Pool.run`."""
        for _ in range(self.limits.concurrency):
            for url in self.pool.urls:
                self.free.put_nowait(url)
        timeout = httpx.Timeout(self.limits.timeout, connect=CONNECT, pool=None)
        most = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            headers=connection.headers(),
            timeout=timeout,
            limits=most,
            mounts=connection.DIRECT,
        ) as self.client:
            for url in list(self.pool.down):
                self._revive(url)
            tasks = [asyncio.ensure_future(self._answer(one, progress)) for one in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                rest = [*tasks, *self.revivals.values()]
                for task in rest:
                    task.cancel()
                await asyncio.gather(*rest, return_exceptions=True)

    async def _answer(self, request: Request, progress: Callable[[int], object]) -> Any:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            wait=wait_random_exponential(multiplier=self.limits.pause, max=30),
            stop=stop_after_attempt(self.limits.attempts),
            reraise=True,
        )
        try:
            found: Any = await retrying(self._attempt, request)
        except _Again as error:
            raise ServerError(
                f"a request failed {self.limits.attempts} times, the last time at {error}; what "
                f"was finished is kept, so {error.mend} and start the run again"
            ) from None
        progress(request.count)
        return found

    async def _attempt(self, request: Request) -> Any:
        """One attempt, at whichever URL has a free slot first."""
        url = await self._slot()
        try:
            found = await self._post(url, request)
            self.silent_since = time.monotonic()
            return found
        finally:
            self.free.put_nowait(url)

    async def _slot(self) -> str:
        while True:
            url = await self.free.get()
            if self.hopeless is not None:
                self.free.put_nowait(url)
                raise self.hopeless
            if url not in self.pool.down:
                return url
            self.parked[url] += 1

    async def _post(self, url: str, request: Request) -> Any:
        try:
            found = await self.client.post(url + request.path, json=request.body)
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            raise await self._too_slow(url) from None
        except httpx.TransportError as error:
            self._leave(url, described(error))
            raise _Again(f"{url}: {described(error)}") from None
        if found.status_code in AGAIN | DOWN:
            if found.status_code in DOWN:
                self._leave(url, f"status {found.status_code}")
            raise _Again(f"{url}: status {found.status_code}, {found.text[:200]!r}")
        if found.status_code in WANTS_KEY:
            raise ServerError(no_key(url, found.status_code))
        if found.status_code != 200:
            raise ServerError(
                f"{url}{request.path} refuses a request with status {found.status_code}: "
                f"{found.text[:400]}"
            )
        try:
            return request.read(found.json())
        except (Garbled, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            if isinstance(error, ServerError):
                raise ServerError(f"{url}: {error}") from None
            raise _Again(
                f"{url}: an answer that makes no sense ({described(error)}), {found.text[:200]!r}"
            ) from None

    async def _too_slow(self, url: str) -> _Again:
        """A server that is busy keeps its requests; one that says nothing at all is left."""
        why = f"no answer within the {self.limits.timeout:g} seconds of server_timeout"
        try:
            limit = min(CONNECT, self.limits.timeout)
            found = await self.client.get(url + "/v1/models", timeout=limit)
            is_there = found.status_code not in DOWN
        except httpx.TransportError:
            is_there = False
        if not is_there:
            self._leave(url, why)
        elif url not in self.slow:
            self.slow.add(url)
            logger.warning("%s: %s; it answers other questions and is asked again", url, why)
        mend = "raise server_timeout or lower server_concurrency, so that requests wait less,"
        return _Again(f"{url}: {why}", mend)

    def _leave(self, url: str, why: str) -> None:
        """Take a URL out until it answers again."""
        if url in self.pool.down:
            return
        self.pool.down[url] = why
        left = len(self.pool.urls) - len(self.pool.down)
        if not left and not self.limits.patience:
            raise Unreachable(f"{url} does not answer: {why}")
        logger.warning(
            "%s does not answer (%s); %s",
            url,
            why,
            f"its requests go to the other {left}"
            if left
            else f"the run waits for up to {self.limits.patience:.0f} seconds",
        )
        self._revive(url)

    def _revive(self, url: str) -> None:
        self.revivals[url] = asyncio.ensure_future(self._wait_for(url))

    async def _wait_for(self, url: str) -> None:
        """Ask a URL again and again, and give its slots back when it answers."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            wait=wait_random_exponential(multiplier=self.limits.pause, max=15),
            stop=stop_never,
        )
        try:
            await retrying(self._probe, url)
        except Exception as error:  # else whoever waits for a slot would wait for ever
            self.hopeless = error
        else:
            self.silent_since = time.monotonic()
        # Whoever waits for a slot takes one of these, and finds that the call is hopeless if so.
        for _ in range(max(1, self.parked[url]) if self.hopeless else self.parked[url]):
            self.free.put_nowait(url)
        self.parked[url] = 0

    async def _probe(self, url: str) -> None:
        """One look at a URL that is out; raises :class:`_Again` if it stays so."""
        silent = time.monotonic() - self.silent_since
        if len(self.pool.down) == len(self.pool.urls) and silent > self.limits.patience:
            told = "; ".join(f"{url}: {why}" for url, why in self.pool.down.items())
            raise ServerError(
                f"no server has answered for {silent:.0f} seconds ({told}); what was finished is "
                "kept, so start the servers and then the run again, or raise server_patience"
            )
        self.pool.restart(url)
        try:
            found = await self.client.get(url + "/v1/models", timeout=CONNECT)
            if found.status_code != 200:
                raise _Again(f"status {found.status_code}")
            # The thread goes on to its end, so that short calls do not begin it again and again.
            await asyncio.to_thread(self.pool.take_up, url)
        except httpx.TransportError as error:
            self.pool.down[url] = described(error)
            raise _Again(described(error)) from None
        except ServerError as error:
            raise _Again(str(error)) from None
