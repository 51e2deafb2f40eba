"""PyTensor's numba linker for blocks of jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, override

from pytensor.configdefaults import config
from pytensor.link.numba.linker import NumbaLinker

from pymc_mpimap.native.compiling import compiling, postponing, with_callees_first

__all__ = ["BlockLinker", "compile_callees", "compile_for"]


class BlockLinker(NumbaLinker):
    """Compile a graph as one function, and not another time within the function to be called.

    PyTensor's own linker calls the compiled graph from a function of any arguments, into which
    all of it is compiled once more. What the code calls by address is left to `compile_for`.
    """

    @override
    def fgraph_convert(self, fgraph: Any, *_: Any, **kwargs: Any) -> Any:
        # Numba is slow to import.
        from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

        with postponing() as callees:
            function, key = numba_funcify_and_cache_key(fgraph, **kwargs)
        return function, key, callees

    @override
    def jit_compile(self, fn: Any) -> Callable[..., Any]:
        from pytensor.link.numba.cache import compile_numba_function_src
        from pytensor.link.numba.dispatch.basic import numba_njit

        function, key, callees = fn
        python = function.py_func
        cache = key is not None and bool(config.numba__cache)
        if cache:
            # Its source is in a file of a random name, by which numba would never find it again.
            fastmath = bool(config.numba__fastmath)
            python = compile_numba_function_src(
                python.__source__,
                python.__name__,
                {**python.__globals__},
                cache_key=f"pymc_mpimap-block-{key}-{fastmath}",
            )
        compiled: Any = numba_njit(python, final_function=True, cache=cache)
        compiled.callees = callees
        return compiled  # type: ignore[no-any-return] # numba's class has no types


def compile_callees(code: Any) -> None:
    """Compile what a block's code calls by address, where that has not been done."""
    for compile_callee in getattr(code, "callees", ()):
        compile_callee()


def compile_for(code: Any, arguments: Sequence[Any]) -> None:
    """Compile a block's code before its first call, and what it calls by address.

    Parameters
    ----------
    code : callable
        Compiled here if it is numba's: the call would do it too.
    arguments : sequence of array
        Of the call to come.
    """
    if with_callees_first():
        compile_callees(code)
    if getattr(code, "signatures", None) == []:
        from numba import typeof

        with compiling():
            code.compile(tuple(typeof(value) for value in arguments))
    compile_callees(code)
