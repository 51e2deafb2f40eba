"""Structures that SUNDIALS hands to compiled code, and calls of its callbacks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "apart",
    "call_jacobian",
    "call_mended",
    "call_rhs",
    "data",
    "length",
    "place",
    "room",
    "spilled",
]


def _caller(n_pointers: int) -> Any:
    """Return what calls ``int f(double, void *, ...)`` by its address."""
    kinds = (types.float64, *[types.intp] * n_pointers)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values = [context.get_value_type(kind) for kind in kinds]
        function = ir.FunctionType(context.get_value_type(types.int32), values)
        called = builder.inttoptr(arguments[0], function.as_pointer())
        return builder.call(called, cgutils.unpack_tuple(builder, arguments[1]))

    def typed(_typing: Any, _function: Any, _arguments: Any) -> Any:
        return types.int32(types.intp, types.Tuple(kinds)), codegen

    return intrinsic(typed)


call_rhs = _caller(3)
"""``call_rhs(address, (t, y, ydot, user))``"""

call_jacobian = _caller(7)
"""``call_jacobian(address, (t, y, fy, J, user, 0, 0, 0))``"""

call_mended = _caller(9)
"""``call_mended(address, (t, y, u, dy, o, kept, w, n, tables, turn))``, see `faults`."""


def _field(k: int, kind: Any) -> Any:
    """Return what reads word `k` of a serial N_Vector's content, as this kind."""

    def typed(_typing: Any, _vector: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = ir.IntType(64)
            pointer = word.as_pointer()
            content = builder.load(builder.inttoptr(arguments[0], pointer))
            fields = builder.inttoptr(content, pointer)
            value = builder.load(builder.gep(fields, [word(k)]))
            target = context.get_value_type(kind)
            return value if target == word else builder.inttoptr(value, target)

        return kind(types.intp), codegen

    return intrinsic(typed)


data: Any = _field(2, types.CPointer(types.float64))
"""``data(vector)``: the values of a serial N_Vector."""

place: Any = _field(2, types.intp)
"""``place(vector)``: the address of its values."""

length: Any = _field(0, types.intp)
"""``length(vector)``: how many they are."""


def _apart(_typing: Any) -> Any:
    """Keep LLVM from inlining the function in which this is called: it is rarely run."""

    def codegen(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        for attribute in ("noinline", "optsize", "cold"):
            builder.function.attributes.add(attribute)
        return context.get_dummy_value()

    return types.none(), codegen


apart: Any = intrinsic(_apart)


def _room(_typing: Any, count: Any) -> Any:
    """Return the address of so many doubles, a literal, which last as long as the function."""

    def codegen(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        block = cgutils.alloca_once(builder, ir.DoubleType(), size=count.literal_value)
        return builder.ptrtoint(block, ir.IntType(64))

    return types.intp(count), codegen


room: Any = intrinsic(prefer_literal=True)(_room)


def _spilled(_typing: Any, _numbers: Any) -> Any:
    """Return the address of the doubles of a tuple."""

    def codegen(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = cgutils.alloca_once(builder, ir.DoubleType(), size=len(signature.args[0]))
        for k, value in enumerate(cgutils.unpack_tuple(builder, arguments[0])):
            builder.store(value, builder.gep(block, [ir.Constant(ir.IntType(32), k)]))
        return builder.ptrtoint(block, ir.IntType(64))

    return types.intp(_numbers), codegen


spilled: Any = intrinsic(_spilled)
