"""Which tiles an architecture takes, and what its library multiplies, without a GPU."""

from types import SimpleNamespace

import pytest
import torch
from pad_fast.kernels.common.device import nearest
from pad_fast.kernels.linear_logprob import tuning
from pad_fast.kernels.preference import tuning as of_losses

from pad_fast import device
from pad_fast.linear_logprob import memory_budget

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("architecture", "entry"),
    [
        *((name, name) for name in ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "gfx942")),
        *(("sm_70", "sm_75"), ("sm_86", "sm_89"), ("sm_87", "sm_80"), ("sm_103", "sm_100")),
        *(("sm_121", "sm_120"), ("sm_110", "sm_80"), ("", "sm_80")),
        *(("gfx90a", "gfx942"), ("gfx950", "gfx942"), ("gfx1100", "gfx942")),
    ],
)
def test_an_unknown_architecture_takes_the_tiles_of_the_nearest(architecture, entry):
    assert nearest(tuning.SCORING, architecture) is tuning.SCORING[entry]


def test_amd_has_no_limit_of_registers_and_programs_of_1024_threads_at_most():
    rows, scoring = tuning.ROWS["gfx942"], tuning.SCORING["gfx942"]
    for tiling in (rows.plain, rows.capped, scoring.aligned, scoring.odd, scoring.float32):
        assert tiling.limits == {}
        assert tiling.num_warps * 64 <= 1024


@pytest.mark.parametrize(
    ("name", "threads"),  # in a warp of RDNA and of CDNA
    [("gfx1100", 32), ("gfx1201", 32), ("gfx90a", 64), ("gfx942", 64), ("gfx950", 64)],
)
def test_losses_have_as_many_threads_on_all_of_amds_gpus(name, threads):
    for options, expected in (
        (of_losses.exact_jsd_options(8, name), 128),
        (of_losses.exact_jsd_options(9, name), 256),
        (of_losses.exact_kl_options(12, name), 512),
        (of_losses.sampled_options(16, name), 128),
        (of_losses.reduction_options(8, name), 256),
    ):
        assert options["num_warps"] * threads == expected
        assert "maxnreg" not in options


def test_nvidias_losses_keep_their_limits_of_registers():
    for name in ("sm_75", "sm_90", "sm_120"):
        options = of_losses.exact_kl_options(8, name)
        assert options["maxnreg"] == of_losses.REGISTERS
        assert options["num_warps"] * 32 == 64
    assert "maxnreg" not in of_losses.exact_kl_options(8, "gfx942")


@pytest.mark.parametrize(("capability", "widens"), [((7, 5), False), ((8, 0), True)])
def test_products_are_widened_by_hand_before_sm_80(monkeypatch, capability, widens):
    monkeypatch.setattr(device, "_capability", lambda _: capability)
    assert device.multiplies_into_float32(SimpleNamespace(device=GPU)) is widens


@pytest.mark.parametrize(
    ("rows", "multiplied"), [(0, 128), (1, 128), (128, 128), (300, 384), (1000, 1024), (5000, 1024)]
)
def test_a_small_batch_multiplies_few_rows_on_a_gpu(rows, multiplied):
    """A chunk of a vocabulary of 128,256 has 1,024 rows."""
    for dtype in (torch.bfloat16, torch.float32):
        assert memory_budget.rows_of_chunk(rows, 128256, GPU, dtype) == multiplied
    assert memory_budget.rows_of_chunk(rows, 128256, GPU, torch.float64) == min(multiplied, 512)
    assert memory_budget.rows_of_chunk(rows, 128256, torch.device("cpu"), torch.float32) == 256
