"""Comparison of a result with its oracle, element by element, within a derived tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest error by tolerance that was seen: it says how much room the tolerances leave.
closest: dict[str, float] = {}


class Mismatch(AssertionError):
    """A result is further from its oracle than rounding explains."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def cast_error(want: Tensor, dtype: torch.dtype) -> Tensor:
    """The error of storing ``want`` in ``dtype``, rounded to nearest.

    Below the normal numbers the step is fixed; a device may flush those numbers to zero.
    """
    info = torch.finfo(dtype)
    return unit_roundoff(dtype) * want.abs() + (
        info.tiny if dtype != torch.float16 else info.smallest_normal * info.eps
    )


def check(name: str, got: Tensor, want: Tensor, tolerance: Tensor | float) -> None:
    """Raise :class:`Mismatch` unless |got - want| <= tolerance.

    NaN and infinities have to be equal, and an infinite tolerance allows anything.

    Where ``want`` is beyond the range of the result's dtype, an infinity of its sign is right.
    """
    if got.shape != want.shape:
        raise Mismatch(f"{name}: shape {tuple(got.shape)} in place of {tuple(want.shape)}")
    if not got.numel():
        return
    largest = torch.finfo(got.dtype).max
    found, tolerance = got.detach().double(), torch.as_tensor(tolerance).expand(want.shape)
    error = (found - want).abs()
    same = (found == want) | (found.isnan() & want.isnan())
    beyond = (want.abs() + tolerance >= largest) & ~found.isnan()
    beyond &= (found.sign() == want.sign()) | (tolerance >= largest)
    beyond &= found.abs() >= largest * 0.99
    same |= tolerance == torch.inf
    right = same | beyond | (error <= tolerance)
    ratio = (error / tolerance).where(~(same | beyond), 0.0)
    worst = int(ratio.nan_to_num(torch.inf).argmax())
    closest[name] = max(closest.get(name, 0.0), float(ratio.flatten()[worst]))
    if not right.all():
        worst = int((ratio.nan_to_num(torch.inf) * ~right).argmax())
        place = [int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape)]
        numbers = (found.flatten()[worst], want.flatten()[worst], tolerance.flatten()[worst])
        raise Mismatch(
            f"{name}{place}: {numbers[0]:.9g} in place of {numbers[1]:.9g}, "
            f"tolerance {numbers[2]:.3g}; {int((~right).sum())} of {want.numel()} are wrong"
        )


def check_equal(name: str, got: Tensor, want: Tensor) -> None:
    """Raise :class:`Mismatch` unless the two have the same bits."""
    if got.dtype != want.dtype or not torch.equal(got.nan_to_num(7e7), want.nan_to_num(7e7)):
        raise Mismatch(f"{name}: bits differ, {got.tolist()} and {want.tolist()}")
