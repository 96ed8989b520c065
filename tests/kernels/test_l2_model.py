"""The order in which the fused kernel takes its work, in a model of the second-level cache."""

import pytest

from tools.l2_model import H200, Work, bytes_read, kernel_order, parts_outside


@pytest.mark.parametrize(("width", "vocabulary"), [(4096, 32768), (2304, 65536)])
def test_weights_are_read_once_a_wave_and_hidden_states_once(width, vocabulary):
    """In the other order, hidden states that do not fit in the cache are read for each tile."""
    work = Work(rows=16384, width=width, vocabulary=vocabulary)
    waves = -(-work.blocks * work.parts // H200.multiprocessors)
    least = 2 * width * (waves * vocabulary + work.rows)
    read = bytes_read(work, kernel_order)
    assert read <= 1.1 * least
    assert read <= 0.15 * bytes_read(work, parts_outside)


def test_the_model_forgets_what_was_not_read_for_the_longest_time():
    """Two blocks of rows fit in the cache next to a weight, or one of them does not."""
    work = Work(rows=256, width=64, vocabulary=256, parts=1, pieces=1)
    fits = H200.__class__(cache=4 * work.piece_bytes, bandwidth=1.0, multiprocessors=1)
    assert bytes_read(work, kernel_order, fits) == 4 * work.piece_bytes
    short = H200.__class__(cache=2 * work.piece_bytes, bandwidth=1.0, multiprocessors=1)
    assert bytes_read(work, kernel_order, short) > 4 * work.piece_bytes
