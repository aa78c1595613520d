"""Vector instructions for numba kernels that have no form in Python."""

from __future__ import annotations

import numba as nb
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 64


def _load(context, builder, array_type, array, at):
    """Load 64 consecutive elements of a contiguous array as one vector."""
    held = context.make_array(array_type)(context, builder, array)
    element = context.get_data_type(array_type.dtype)
    pointer = builder.bitcast(builder.gep(held.data, [at]), ir.VectorType(element, LANES).as_pointer())
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _at_least(builder, element_type, values, floors):
    if isinstance(element_type, types.Float):
        mask = builder.fcmp_ordered(">=", values, floors)
    else:
        mask = builder.icmp_signed(">=", values, floors)
    return builder.bitcast(mask, ir.IntType(LANES))


@intrinsic
def reached(typing_context, values, at, floor):
    """Return a uint64 whose bit c is set if ``values[at + c] >= floor``, c = 0..63.

    ``values`` must be contiguous and have an element at + 63.
    """

    def generate(context, builder, signature, arguments):
        vector = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        one = builder.insert_element(ir.Constant(vector.type, ir.Undefined), arguments[2], ir.IntType(32)(0))
        every = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
        return _at_least(builder, values.dtype, vector, every)

    return types.uint64(values, types.int64, values.dtype), generate


@intrinsic
def reached_each(typing_context, values, at, floors, first):
    """Return a uint64 whose bit c is set if ``values[at + c] >= floors[first + c]``, c = 0..63."""

    def generate(context, builder, signature, arguments):
        left = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        right = _load(context, builder, signature.args[2], arguments[2], arguments[3])
        return _at_least(builder, values.dtype, left, right)

    return types.uint64(values, types.int64, floors, types.int64), generate


@intrinsic
def lowest_bit(typing_context, mask):
    """Return the index of the lowest set bit of a uint64 that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


@intrinsic
def _prefetch(typing_context, array, row, byte):
    """Prefetch the cache line that holds one byte of a row of a contiguous two-dimensional array."""

    def generate(context, builder, signature, arguments):
        held = context.make_array(array)(context, builder, arguments[0])
        stride = builder.extract_value(held.strides, 0)
        offset = builder.add(builder.mul(arguments[1], stride), arguments[2])
        base = builder.bitcast(held.data, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [base.type, *[ir.IntType(32)] * 3])
        function = builder.module.declare_intrinsic("llvm.prefetch", [base.type], kind)
        builder.call(function, [builder.gep(base, [offset]), *map(ir.IntType(32), (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@nb.njit(cache=True)
def prefetch_row(array, row, columns):
    """Prefetch the first columns of a row of a contiguous two-dimensional array into the cache."""
    for byte in range(0, columns * array.itemsize, 64):
        _prefetch(array, row, byte)
