"""Servers over the models of a world, and engines that ask them."""

from __future__ import annotations

import pytest
from stub_server import Stub

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.serving.pool import Limits, Pool
from pad_fast.pipeline.serving.server_engine import ServerEngine

QUICK = Limits(concurrency=4, timeout=20.0, patience=5.0, attempts=6, pause=0.02)


@pytest.fixture
def stub_of(world):
    """Makes stubs of the world's models, which end with the test."""
    made = []

    def make(role: str = "teacher", **changes) -> Stub:
        made.append(Stub(world / role, **changes))
        return made[-1]

    yield make
    for stub in made:
        stub.stop()


@pytest.fixture
def engine_of(world):
    """Makes the engine of some stubs."""

    def make(*stubs: Stub, role: str = "teacher", limits: Limits = QUICK) -> ServerEngine:
        checkpoint = Checkpoint(role, str(world / role))
        return ServerEngine(checkpoint, "mean", Pool([stub.url for stub in stubs], limits))

    return make
