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
        wanted = {
            key: (tuple(view.prompt), view.responses[index])
            for view, group in zip(views, keys, strict=True)
            for key, index in zip(group, view.readable, strict=True)
        }

        def ask(missing: list[tuple[tuple[int, ...], list[int]]]) -> list[list[float]]:
            # A prompt's missing responses are asked together, so that they can share the prompt.
            together: dict[tuple[int, ...], list[list[int]]] = {}
            for prompt, response in missing:
                together.setdefault(prompt, []).append(response)
            found = self.engine.logps(list(together), list(together.values()), progress)
            left = {prompt: iter(logps) for prompt, logps in zip(together, found, strict=True)}
            return [[next(left[prompt])] for prompt, _ in missing]

        progress(sum(len(view.responses) for view in views) - len(wanted))
        known = self.cache.known_or(wanted, ask, progress)
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
        known = self.cache.known_or(
            wanted, lambda missing: self.engine.choices(missing, token_ids, progress)
        )
        return [[list(known[key]) for key in group] for group in keys]

    def _key(self, view: TeacherView, index: int) -> bytes:
        return self.cache.key(self._logp, view.prompt, view.responses[index])
