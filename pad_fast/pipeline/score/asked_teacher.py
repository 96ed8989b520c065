"""The teacher's numbers, from the cache or else from the engine that runs the teacher."""

from __future__ import annotations

from collections.abc import Sequence

from pad_fast.pipeline.sample.engines import Engine, Ids, Progress, unseen
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.teacher_view import TeacherView


class AskedTeacher:
    """Answers about a shard's rows; what the cache lacks is asked and kept.

    Args:
        engine: the teacher as it is asked.
        cache: holds what it was asked before.
        temperature: of the log-probabilities that the engine gives.
    """

    def __init__(self, engine: Engine, cache: ScoreCache, temperature: float) -> None:
        self.engine, self.cache = engine, cache
        self._logp = f"logp at temperature {temperature}"

    def logps(self, views: Sequence[TeacherView], progress: Progress = unseen) -> list[list[float]]:
        """The log-probabilities of each row's readable responses, in nats.

        Args:
            views: the rows as the teacher reads them.
            progress: called with the number of responses that are done, unreadable ones included.
        """
        keys = [[self._key(view, index) for index in view.readable] for view in views]
        known = self.cache.find([key for group in keys for key in group])
        # A prompt's missing responses are asked together, so that they can share the prompt.
        missing: dict[tuple[int, ...], dict[bytes, list[int]]] = {}
        for view, group in zip(views, keys, strict=True):
            for key, index in zip(group, view.readable, strict=True):
                if key not in known:
                    missing.setdefault(tuple(view.prompt), {})[key] = view.responses[index]
        total = sum(len(view.responses) for view in views)
        progress(total - sum(map(len, missing.values())))
        if missing:
            responses = [list(group.values()) for group in missing.values()]
            found = self.engine.logps(list(missing), responses, progress)
            new = {
                key: [logp]
                for group, logps in zip(missing.values(), found, strict=True)
                for key, logp in zip(group, logps, strict=True)
            }
            self.cache.add(new)
            known |= new
        return [[known[key][0] for key in group] for group in keys]

    def choices(
        self, prompts: Sequence[Sequence[Ids]], token_ids: Ids, progress: Progress = unseen
    ) -> list[list[list[float]]]:
        """The log-probabilities of ``token_ids`` after each of a row's questions, in nats.

        Args:
            prompts: of each row, the token ids of its questions.
            token_ids: the tokens that are asked about.
            progress: called with the number of questions that are asked, batch by batch.
        """
        keys = [[self.cache.key("choice", ids, token_ids) for ids in group] for group in prompts]
        wanted = {
            key: ids
            for group, questions in zip(keys, prompts, strict=True)
            for key, ids in zip(group, questions, strict=True)
        }
        known = self.cache.find(wanted)
        missing = {key: ids for key, ids in wanted.items() if key not in known}
        if missing:
            found = self.engine.choices(list(missing.values()), token_ids, progress)
            new = dict(zip(missing, found, strict=True))
            self.cache.add(new)
            known |= new
        return [[known[key] for key in group] for group in keys]

    def _key(self, view: TeacherView, index: int) -> bytes:
        return self.cache.key(self._logp, view.prompt, view.responses[index])
