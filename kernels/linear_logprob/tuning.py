"""Tiles of the kernels for hidden states times the head, for each architecture.

The numbers are fixed and never tried out at run time, so that results keep their bits. The rows'
tiles of sm_90 are the fastest of those that ``benchmarks/tilings.py`` timed on an H200. The others
follow from the reasons below and were not timed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ..common.device import architecture, nearest


@dataclass(frozen=True)
class RowTiling:
    """Tiles of linear_logprob_rows, which turns rows of logits into log-probabilities."""

    columns: int  # columns of a tile, a power of two
    num_warps: int
    most_registers: int | None = None  # a thread's; None leaves it to the compiler

    @property
    def limits(self) -> dict[str, int]:
        """The limit of registers, which only NVIDIA's compiler takes."""
        return {} if self.most_registers is None else {"maxnreg": self.most_registers}


@dataclass(frozen=True)
class RowTilings:
    """The tilings of an architecture, by what is done to the logits."""

    plain: RowTiling
    capped: RowTiling  # with a softcap
    # A thread's of float64 logits; None leaves it to the compiler.
    float64_registers: int | None = None

    def of(self, dtype: torch.dtype, softcap: float) -> RowTiling:
        """The tiling for logits of ``dtype``: a float64 takes two registers, and its tanh more."""
        tiling = self.capped if softcap else self.plain
        if dtype.itemsize <= 4:
            return tiling
        return RowTiling(tiling.columns // 4, tiling.num_warps // 2, self.float64_registers)


# Scores that are not in bfloat16 need a row's logits twice. The second walk goes backwards, and
# finds more of them in the second-level cache where fewer rows are in flight. So sm_100 has
# programs of 1,024 threads, one to a multiprocessor; 64 registers are all that they can have, and
# without the limit ptxas may spill in order to fit a second. But on an H200 programs of 512
# threads, of which three share a multiprocessor, took 2.5% less time, and 5.5% less where there
# were only 300 rows. Smaller ones took no less than these.
#
# With a softcap the threads of a program wait for one another at each tile, and while they do, none
# loads or computes. So four programs of 256 threads share a multiprocessor, with the same bytes in
# flight. What takes two walks reads its rows again from memory, which is less than the waiting.
_CAPPED = RowTiling(2048, 8, most_registers=64)
ROWS = {
    # Left alone, Triton 3.9 puts 8 bytes of float64 on a stack: on sm_80 with a bias, on sm_90
    # where no gradient is kept.
    "sm_80": RowTilings(RowTiling(4096, 16), _CAPPED, float64_registers=128),
    "sm_90": RowTilings(RowTiling(4096, 16), _CAPPED, float64_registers=128),
    "sm_100": RowTilings(RowTiling(8192, 32, most_registers=64), _CAPPED, float64_registers=128),
    # Warps of 64 threads, and 1,024 threads at most.
    "gfx942": RowTilings(RowTiling(4096, 16), RowTiling(2048, 8)),
}


@functools.cache
def rows_of(device: torch.device) -> RowTilings:
    """The tilings of linear_logprob_rows on a device."""
    return nearest(ROWS, architecture(device))


@dataclass(frozen=True)
class ScoringTiling:
    """Tiles of linear_logprob_fwd, the product that writes no logits."""

    rows: int
    columns: int
    depth: int  # bytes of a tile along D
    num_warps: int
    num_stages: int
    # Whether tiles are fetched by tensor descriptors, and as many programs run as multiprocessors.
    described: bool = False
    most_registers: int | None = None  # a thread's; None leaves it to the compiler

    @property
    def limits(self) -> dict[str, int]:
        """The limit of registers, which only NVIDIA's compiler takes."""
        return {} if self.most_registers is None else {"maxnreg": self.most_registers}


@dataclass(frozen=True)
class ScoringTilings:
    """The tilings of an architecture, by the factors of the product."""

    aligned: ScoringTiling  # 16-bit factors whose rows start at multiples of 16 bytes
    odd: ScoringTiling  # other 16-bit factors
    float32: ScoringTiling
    biased: ScoringTiling | None = None  # aligned factors with a bias; None: as without one
    odd_biased: ScoringTiling | None = None  # odd factors with a bias; None: as without one
    uneven: ScoringTiling | None = None  # aligned ones if 16 does not divide D; None: as if it did
    uneven_biased: ScoringTiling | None = None  # the same with a bias

    def of(self, dtype: torch.dtype, aligned: bool, bias: bool, even: bool = True) -> ScoringTiling:
        """The tiling for factors of ``dtype``, 16-bit ones aligned or not, and a bias.

        ``even`` says whether 16 divides D.
        """
        if dtype == torch.float32:
            return self.float32
        uneven = self.uneven_biased if bias else self.uneven
        if aligned and not even and uneven is not None:
            return uneven
        plain, biased = (self.aligned, self.biased) if aligned else (self.odd, self.odd_biased)
        return plain if biased is None or not bias else biased


# Tensor cores: 128 x 128 float32 numbers are 64 registers of each of 256 threads, and the softmax
# needs as many again. Rows that do not start at multiples of 16 bytes are loaded by single numbers
# through registers, so that half the depth is what fits.
_ODD = ScoringTiling(128, 128, 32, 8, 3)
_ODD_BIASED = ScoringTiling(128, 64, 32, 8, 3)
# float32 is multiplied by ordinary instructions, as PyTorch does by default. 64 x 64 numbers are 16
# registers of each of 256 threads, and their factors are unrolled over the depth. Without the limit
# ptxas aims at two programs on a multiprocessor and puts numbers on a stack.
_FLOAT32 = ScoringTiling(64, 64, 64, 8, 3, most_registers=255)
_FLOAT32_AMD = ScoringTiling(64, 64, 64, 8, 2)
# For GPUs before sm_80, Triton has no tensor cores any more.
_ORDINARY = ScoringTiling(64, 64, 32, 8, 2, most_registers=255)
# As on sm_80, but 40 bytes of an uneven biased tile of 128 columns would be on a stack.
_SM_86 = ScoringTilings(
    ScoringTiling(128, 128, 64, 8, 3),
    _ODD,
    _FLOAT32,
    uneven_biased=ScoringTiling(128, 64, 64, 8, 3),
)
SCORING = {
    "sm_75": ScoringTilings(_ORDINARY, _ORDINARY, _FLOAT32),
    "sm_80": ScoringTilings(ScoringTiling(128, 128, 64, 8, 3), _ODD, _FLOAT32),
    "sm_86": _SM_86,
    "sm_89": _SM_86,
    "sm_90": ScoringTilings(ScoringTiling(128, 128, 128, 8, 4, described=True), _ODD, _FLOAT32),
    "sm_100": ScoringTilings(
        ScoringTiling(128, 128, 128, 8, 4, described=True),
        _ODD,
        _FLOAT32,
        # Triton 3.9 puts 40 bytes of a biased tile of 128 columns on a stack, and 48 of an odd one.
        biased=ScoringTiling(128, 64, 128, 8, 4, described=True),
        odd_biased=_ODD_BIASED,
    ),
    "sm_120": ScoringTilings(
        ScoringTiling(128, 128, 64, 8, 3),
        _ODD,
        _FLOAT32,
        biased=ScoringTiling(128, 64, 64, 8, 3),  # 8 bytes of 128 columns would be on a stack
        odd_biased=_ODD_BIASED,
        uneven=ScoringTiling(128, 64, 64, 8, 3),  # again 8 bytes
    ),
    "gfx942": ScoringTilings(ScoringTiling(128, 128, 64, 8, 2), _ODD, _FLOAT32_AMD),
}
# Parts of the vocabulary. The number does not follow the batch, since the order of a row's sums
# follows it.
SPLITS = 8


@functools.cache
def scoring_of(device: torch.device) -> ScoringTilings:
    """The tilings of linear_logprob_fwd on a device."""
    return nearest(SCORING, architecture(device))
