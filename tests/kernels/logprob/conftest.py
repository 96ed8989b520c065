"""Small tiles for the tests of the log-probability kernels."""

import pytest
from pad_fast.kernels.logprob import launch, tuning


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 256 bytes, two a program in the backward, so that a short row has every boundary."""
    tiling = tuning.Tiling(tile_bytes=256, num_warps=4, chunk=2)
    monkeypatch.setattr(launch, "tilings_of", lambda device: tuning.Tilings(tiling, tiling))
    return tiling
