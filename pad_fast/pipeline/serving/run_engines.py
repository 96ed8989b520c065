"""Which engine runs a model of a run: this process, somebody's servers, or one of its own."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.multiple_choice import letter_token_ids
from pad_fast.pipeline.sample.engines import Engine
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.server_settings import is_served, servers_of
from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.full_load import Load
from pad_fast.pipeline.serving.own_server import OwnServer
from pad_fast.pipeline.serving.pool import Limits, Pool
from pad_fast.pipeline.serving.served_weights import Undecided, WeightsCheck
from pad_fast.pipeline.serving.server_engine import ServerEngine
from pad_fast.pipeline.serving.trial import try_out
from pad_fast.terminal import say

logger = logging.getLogger("pad_fast")

POLL = 5.0  # seconds between two looks at a server that has to be given new weights


class RunEngines:
    """The engines of a run, of which one at a time holds memory.

    Args:
        config: names the servers, or the commands that start them.
        scores: of the engine in this process.
        folder: of the run, for the servers' logs.
        record: called with a role and the identity of each engine that is opened.
        rows: gives rows that tell a round's student from the one before.
        others: gives the other students that a server may still have in a student's place.
        longest: gives the tokens of the longest prompt by the role of the model that reads it.
    """

    def __init__(
        self,
        config: RunConfig,
        scores: ModelScores,
        folder: Path,
        record: Callable[[str, str], None],
        rows: Callable[[], Sequence[Row]],
        others: Callable[[Checkpoint], Sequence[Checkpoint]],
        longest: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.config, self.scores, self.folder = config, scores, folder
        self.record, self.rows, self.others, self.longest = record, rows, others, longest
        self._own: tuple[str, OwnServer, ServerEngine] | None = None
        self._given: dict[str, tuple[str, ServerEngine]] = {}  # role: path, engine

    @contextlib.contextmanager
    def open(self, checkpoint: Checkpoint) -> Iterator[Engine]:
        """What runs a model inside the block.

        The weights in this process are released after the block. A server of one's own goes on
        until another model is wanted, or until :meth:`close`.
        """
        role = checkpoint.role
        urls, command = servers_of(self.config).get(role, ([], None))
        if command:
            engine: Engine = self._own_server(checkpoint, command)
        elif urls:
            self.close()
            engine = self._servers(checkpoint, urls)
        else:
            self.close()
            engine = TransformersEngine(checkpoint, self.scores)
        self.record(role, engine.identity)
        try:
            yield engine
        finally:
            engine.close()

    def are_servers(self, checkpoint: Checkpoint) -> bool:
        """Whether servers run a model, and not this process."""
        return is_served(self.config, checkpoint.role)

    def try_servers(self, checkpoints: Sequence[Checkpoint], *, own: bool) -> None:
        """Try out the servers before the first hour of work.

        Args:
            checkpoints: the models that they run.
            own: whether the teacher's server is started for it where the run does that. The
                student's is the first that it starts anyway.

        Raises:
            ServerError: one of them cannot be used.
        """
        for checkpoint in checkpoints:
            urls, command = servers_of(self.config)[checkpoint.role]
            if urls:
                self._tried(checkpoint, Pool(urls, self._limits))
            elif command and own and checkpoint.role == "teacher":
                say("trying teacher_serve before anything is sampled")
                self._own_server(checkpoint, command)
                self.close()

    def close(self) -> None:
        """End the server of one's own, if one is there; its memory is free afterwards."""
        if self._own is not None:
            _, server, _ = self._own
            self._own = None
            server.stop()

    @property
    def _limits(self) -> Limits:
        config = self.config
        return Limits(config.server_concurrency, config.server_timeout, config.server_patience)

    @property
    def _load(self) -> Load:
        """What one server scores at a time: the groups of a shard, with prompts of this length."""
        config = self.config
        together = min(config.server_concurrency, config.shard_size)
        return Load(together, config.most_generations, 2 * config.max_new_tokens)

    def _engine(self, checkpoint: Checkpoint, pool: Pool) -> ServerEngine:
        engine = ServerEngine(checkpoint, self.scores.normalize, pool)
        if (longest := self.longest().get(checkpoint.role)) is not None:
            engine.check_room(longest, self.config.max_new_tokens)
        return engine

    def _tried(self, checkpoint: Checkpoint, pool: Pool) -> ServerEngine:
        engine = self._engine(checkpoint, pool)
        try_out(engine, self._letters(checkpoint), load=self._load)
        return engine

    def _letters(self, checkpoint: Checkpoint) -> list[int]:
        if checkpoint.role != "teacher" or not self.config.asks:
            return []
        forms = letter_token_ids(checkpoint.tokenizer, self.config.letters)
        return [token for tokens in forms for token in tokens]

    def _own_server(self, checkpoint: Checkpoint, command: str) -> ServerEngine:
        if self._own is not None and self._own[0] == checkpoint.path:
            return self._own[2]
        self.close()
        checkpoint.compare(weights=True)
        log = self.folder / "servers" / f"{checkpoint.role}.log"
        server = OwnServer(command, checkpoint.to_serve(), log, self.config.serve_timeout)
        try:
            server.start()
            server.wait()
            engine = self._tried(checkpoint, Pool([server.url], self._limits, server.revive))
        except BaseException:
            server.stop()
            raise
        self._own = (checkpoint.path, server, engine)
        return engine

    def _servers(self, checkpoint: Checkpoint, urls: Sequence[str]) -> ServerEngine:
        path, engine = self._given.get(checkpoint.role, (None, None))
        if engine is None or path != checkpoint.path:
            if checkpoint.role == "teacher":
                engine = self._tried(checkpoint, Pool(urls, self._limits))
            else:
                engine = self._with_weights(checkpoint, urls)
            self._given[checkpoint.role] = (checkpoint.path, engine)
        return engine

    def _with_weights(self, checkpoint: Checkpoint, urls: Sequence[str]) -> ServerEngine:
        """The servers once all of them that answer have the checkpoint's weights.

        Where another student was served before, somebody has to load these, which is waited for.
        Those of the base student are there at the start, or the servers are wrong. What nothing
        tells apart somebody has to name, for which a run does not wait longer than for servers that
        are gone: nobody may be there.
        """
        others = self.others(checkpoint)
        check, told = WeightsCheck(self.rows(), checkpoint, others), ""
        since: float | None = None  # when what is there began to be told from others by nothing
        while True:
            try:
                engine = self._engine(checkpoint, Pool(urls, self._limits))
                try_out(engine, weights=check, load=self._load)
                return engine
            except ServerError as error:
                if not others:
                    raise ServerError(f"student_server: {error}; serve {checkpoint.path}") from None
                if str(error) != told:
                    self._ask_for(checkpoint, urls, str(error))
                told = str(error)
                since = (since or time.monotonic()) if isinstance(error, Undecided) else None
                if since and time.monotonic() - since > self._limits.patience:
                    raise ServerError(
                        f"student_server: {error}. What was finished is kept: do that, and start "
                        "the run again"
                    ) from None
            time.sleep(POLL)

    def _ask_for(self, checkpoint: Checkpoint, urls: Sequence[str], why: str) -> None:
        """Print what has to be served before the run goes on."""
        given = self._given.get("student")
        start = given[1].dialect.start if given else "vllm serve {model} --port {port}"
        path = str(Path(checkpoint.path).resolve())
        print(f"\nThe run waits for servers with {path}\n({why}). For example:")
        for url in urls:
            port = url.rsplit(":", 1)[-1] if url.count(":") > 1 else "80"
            print(f"    {start.replace('{model}', path).replace('{port}', port)}")
        print("It goes on by itself when they answer with these weights.", flush=True)
