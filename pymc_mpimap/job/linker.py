"""PyTensor's numba linker for blocks of jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, override

from pytensor.configdefaults import config
from pytensor.link.numba.linker import NumbaLinker

from pymc_mpimap.native.compiling import compiling

__all__ = ["BlockLinker", "compile_for"]


class BlockLinker(NumbaLinker):
    """Compile a graph as one function, and not another time within the function to be called.

    PyTensor's own linker calls the compiled graph from a function of any arguments, into which
    all of it is compiled once more.
    """

    @override
    def fgraph_convert(self, fgraph: Any, *_: Any, **kwargs: Any) -> Any:
        # Numba is slow to import.
        from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

        return numba_funcify_and_cache_key(fgraph, **kwargs)

    @override
    def jit_compile(self, fn: Any) -> Callable[..., Any]:
        from pytensor.link.numba.cache import compile_numba_function_src
        from pytensor.link.numba.dispatch.basic import numba_njit

        function, key = fn
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
        compiled: Callable[..., Any] = numba_njit(python, final_function=True, cache=cache)
        return compiled


def compile_for(code: Any, arguments: Sequence[Any]) -> None:
    """Compile a block's code before its first call, if it is numba's: the call would do it too."""
    if getattr(code, "signatures", None) == []:
        from numba import typeof

        with compiling():
            code.compile(tuple(typeof(value) for value in arguments))
