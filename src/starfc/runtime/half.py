"""16-bit floats in numba kernels. Numba has no such types, so kernels get the bits of the numbers as integers."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray


@intrinsic
def single(typing_context, value):
    """Return the float32 value of a float32, or of a float16 given as uint16 bits (one vector instruction)."""

    def generate(context, builder, signature, arguments):
        if isinstance(value, types.Float):
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), generate


@intrinsic
def half(typing_context, value):
    """Return the float16 nearest to a float32, ties to even, as uint16 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def number(typing_context, value):
    """Return the float32 value of a float32, or of a bfloat16 given as int16 bits."""

    def generate(context, builder, signature, arguments):
        if isinstance(value, types.Float):
            return arguments[0]
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(value), generate


@intrinsic
def rounded(typing_context, value):
    """Return the bfloat16 nearest to a finite float32, ties to even, as int16 bits."""

    def generate(context, builder, signature, arguments):
        return _rounded(builder, arguments[0])

    return types.int16(types.float32), generate


@intrinsic
def like(typing_context, value, example):
    """Return a finite float32 in the form of ``example``: unchanged, or the bits of a bfloat16 (:func:`rounded`)."""

    def generate(context, builder, signature, arguments):
        return arguments[0] if isinstance(example, types.Float) else _rounded(builder, arguments[0])

    return (types.float32 if isinstance(example, types.Float) else types.int16)(types.float32, example), generate


def _rounded(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    word = ir.IntType(32)
    raw = builder.bitcast(value, word)
    odd = builder.and_(builder.lshr(raw, word(16)), word(1))
    up = builder.add(raw, builder.add(odd, word(0x7FFF)))
    return builder.trunc(builder.lshr(up, word(16)), ir.IntType(16))


def bits(array: NDArray[np.floating]) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Return an array in the form that kernels accept: float32 unchanged, float16 as its uint16 bits."""
    return array.view(np.uint16) if array.dtype == np.float16 else array
