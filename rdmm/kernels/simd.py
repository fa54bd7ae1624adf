"""A power of two in float32 that numba compiles to vector instructions."""

from __future__ import annotations

import math

import numpy as np

from rdmm.kernels.compiled import FAST, compiled

MIN_VALUE = np.float32(-3e38)
"""Start of a running maximum: below every exponent that occurs."""

MIN_EXPONENT = np.float32(-120.0)
"""Smallest argument of exp2: its integer arithmetic needs more than -126."""

LOG2E, LN2 = np.float32(math.log2(math.e)), np.float32(math.log(2))

f32, i32 = np.float32, np.int32


@compiled(inline="always", fastmath=FAST)
def exp2(x):  # type: ignore[no-untyped-def]
    """2^x for -126 <= x < 128: the integer part is written into the exponent bits, a polynomial gives the rest (relative error 2e-7)."""
    whole = np.floor(x)
    r = x - whole
    p = f32(1.8775767e-3)
    p = p * r + f32(8.9893397e-3)
    p = p * r + f32(5.5826318e-2)
    p = p * r + f32(2.4015361e-1)
    p = p * r + f32(6.9315308e-1)
    p = p * r + f32(9.9999994e-1)
    return p * i32((i32(whole) + i32(127)) << i32(23)).view(np.float32)
