"""What SUNDIALS hands to compiled code, and how its callbacks are called."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["call_jacobian", "call_rhs", "data", "length"]


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

length: Any = _field(0, types.intp)
"""``length(vector)``: how many they are."""
