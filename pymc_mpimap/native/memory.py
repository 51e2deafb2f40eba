"""Raw memory as numba sees it: pointers, symbols, and one atomic exchange."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

__all__ = [
    "Buffer",
    "call_with",
    "compact",
    "doubles",
    "exchange",
    "increase",
    "symbol",
    "words",
]


class Buffer:
    """Words of memory that compiled code, also from a cache on disk, finds by name.

    Parameters
    ----------
    name : str
        What compiled code calls it, see `symbol`.
    size : int
        How many words.
    """

    def __init__(self, name: str, size: int):
        self.name = name
        self.words = (ctypes.c_int64 * size)()
        self.address = ctypes.addressof(self.words)
        llvm.add_symbol(name, self.address)


def _symbol(_typing: Any, name: Any) -> Any:
    """Return the address of the `Buffer` of this name, a literal."""
    text = name.literal_value

    def codegen(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        word = context.get_value_type(types.intp)
        variable = builder.module.globals.get(text)
        if variable is None:
            variable = ir.GlobalVariable(builder.module, word, text)
            variable.linkage = "external"
        return builder.ptrtoint(variable, word)

    return types.intp(name), codegen


# What numba makes of these functions is called with other arguments than they have.
symbol: Any = intrinsic(prefer_literal=True)(_symbol)


def _pointer(target: Any) -> Any:
    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    def typed(_typing: Any, _address: Any) -> Any:
        return target(types.intp), codegen

    return intrinsic(typed)


words: Any = _pointer(types.CPointer(types.intp))
"""``words(address)`` as a pointer to words."""

doubles: Any = _pointer(types.CPointer(types.float64))
"""``doubles(address)`` as a pointer to doubles."""


def _atomic(operation: str) -> Any:
    def typed(_typing: Any, _address: Any, _value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            where = builder.inttoptr(
                arguments[0], context.get_value_type(types.CPointer(types.intp))
            )
            return builder.atomic_rmw(operation, where, arguments[1], "seq_cst")

        return types.intp(types.intp, types.intp), codegen

    return intrinsic(typed)


exchange = _atomic("xchg")
"""``exchange(address, word)``: put a word there and return the one that was, in one step."""

increase = _atomic("add")
"""``increase(address, word)``: add to the word there, in one step."""


def _call_with(_typing: Any, _function: Any, _values: Any) -> Any:
    """Call ``int f(void *)`` by its address, with numbers and arrays packed into words.

    An array is packed as the address of its numbers, or of a copy where they are not one after
    the other, and how many they are. That the values are arguments here keeps the arrays alive
    for as long as the call takes.
    """
    for kind in _values.types:
        word_like = getattr(kind, "dtype", kind) in (types.float64, types.int64)
        if not word_like or isinstance(kind, types.Float):
            raise TypingError(f"not an integer, or an array of float64 or int64: {kind}")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args[1].types
        packed, copies = [], []
        values = cgutils.unpack_tuple(builder, arguments[1])
        for given, value in zip(kinds, values, strict=True):
            if not isinstance(given, types.Array):
                packed.append(context.cast(builder, value, given, types.intp))
                continue
            kind, lasting = given, value
            if given.layout != "C" or not given.aligned:
                kind = types.Array(given.dtype, given.ndim, "C")
                lasting = context.compile_internal(builder, _copy, kind(given), (value,))
                copies.append((kind, lasting))
            array = context.make_array(kind)(context, builder, lasting)
            packed += [builder.ptrtoint(array.data, word), array.nitems]
        block = cgutils.alloca_once(builder, word, size=len(packed))
        for k, value in enumerate(packed):
            builder.store(value, builder.gep(block, [ir.Constant(ir.IntType(32), k)]))
        function = ir.FunctionType(context.get_value_type(types.int32), [word])
        called = builder.inttoptr(arguments[0], function.as_pointer())
        result = builder.call(called, [builder.ptrtoint(block, word)])
        for kind, copied in copies:
            context.nrt.decref(builder, kind, copied)
        return result

    word = ir.IntType(64)
    return types.int32(types.intp, _values), codegen


def _copy(array: Any) -> Any:
    return array.copy()


call_with: Any = intrinsic(_call_with)


def _compact(_typing: Any) -> Any:
    """Have LLVM make the function in which this is called small, and quick to compile."""

    def codegen(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("optsize")
        return context.get_dummy_value()

    return types.none(), codegen


compact: Any = intrinsic(_compact)
