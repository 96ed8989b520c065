"""Triton's interpreter, mended where it computes otherwise than a GPU."""

import numpy as np
import torch


def mend() -> None:
    """Let the interpreter of this process round to bfloat16 and multiply in it as a GPU does.

    Its own ``_convert_float`` cuts the lower 16 bits off, which is twice the error and always
    towards zero, and its ``create_dot`` multiplies the bits of bfloat16 as integers.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    convert, builder = interpreter._convert_float, interpreter.InterpreterBuilder
    if getattr(convert, "is_mended", False):
        return
    toward_zero, dot = interpreter._ir.ROUNDING_MODE.RTZ, builder.create_dot

    def to_nearest_even(values, dtype, target, rounding_mode):
        if (dtype, target) == (tl.float32, tl.bfloat16) and rounding_mode != toward_zero:
            return bfloat16_bits(values)
        return convert(values, dtype, target, rounding_mode)

    def product(self, a, b, d, *options):
        wide = (
            interpreter.TensorHandle(float32_values(x.data), tl.float32)
            if x.dtype.scalar.is_bf16()
            else x
            for x in (a, b)
        )
        return dot(self, *wide, d, *options)

    setattr(to_nearest_even, "is_mended", True)  # noqa: B010 (a function has no such attribute)
    interpreter._convert_float, builder.create_dot = to_nearest_even, product


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values in bfloat16, rounded to nearest even."""
    exact = torch.from_numpy(np.array(values, dtype=np.float32))
    return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)


def float32_values(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16 numbers, which the interpreter holds as their bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
