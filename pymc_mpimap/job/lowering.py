"""Graphs of blocks, rewritten for a backend: once, on rank 0, for all ranks to compile.

A rewrite decides what is computed, to the last bit, and each process has its own: a module that
one rank alone has imported may have registered more. So ranks are sent what the rewrites made of
a graph, and link it as it is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pytensor.compile.aliasing import add_supervisor_to_fgraph, insert_deepcopy
from pytensor.compile.inner_function import link_only_mode
from pytensor.compile.io import In, Out
from pytensor.compile.mode import Mode, get_default_mode
from pytensor.graph.fg import FrozenFunctionGraph, FunctionGraph
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.basic import Linker, PerformLinker
from pytensor.link.c.basic import CLinker, OpWiseCLinker
from pytensor.link.jax.linker import JAXLinker
from pytensor.link.numba.linker import NumbaLinker
from pytensor.link.vm import VMLinker

from pymc_mpimap.job.linker import BlockLinker, compile_callees
from pymc_mpimap.vectormath.rewriting import vectorizing

__all__ = ["BlockGraph", "as_pymc_compiles", "default_job_mode", "job_mode", "lower"]

Backend = Literal["numba", "jax", "c", "python"]

_LINKERS: dict[Backend, Callable[[], Linker]] = {
    "numba": BlockLinker,
    "jax": JAXLinker,
    "c": lambda: VMLinker(use_cloop=True),
    "python": lambda: VMLinker(use_cloop=False, c_thunks=False),
}


@dataclass(frozen=True)
class BlockGraph:
    """A rewritten graph, and the backend that it was rewritten for.

    Attributes
    ----------
    graph : FrozenFunctionGraph
        It may work in place: the order of its nodes is part of it.
    backend : {"numba", "jax", "c", "python"}
    """

    graph: FrozenFunctionGraph
    backend: Backend

    def link(self) -> Any:
        """Return a PyTensor function that must not be called before `compile_for` or the like."""
        fgraph = self.graph.unfreeze()
        mode = link_only_mode(_LINKERS[self.backend]())
        with warnings.catch_warnings():
            # An Op without numba code (a JAX function in a job) runs in object mode: slower,
            # right, and nothing that the user could mend.
            warnings.filterwarnings("ignore", "Numba will use object mode", UserWarning)
            function = mode.function_maker(
                [In(variable) for variable in fgraph.inputs],
                [Out(variable) for variable in fgraph.outputs],
                mode,
                fgraph=fgraph,
                accept_inplace=True,
                on_unused_input="ignore",
            ).create()
        function.trust_input = True
        return function

    def function(self) -> Any:
        """Return a PyTensor function of arrays of exactly the right types."""
        function = self.link()
        compile_callees(getattr(function.vm, "jit_fn", function))
        return function


def lower(inputs: Sequence[Any], outputs: Sequence[Any], mode: Mode) -> BlockGraph:
    """Rewrite a graph as `pytensor.function` would, in one of the modes of jobs."""
    backend = _backend(mode)
    assert backend is not None
    fgraph = FunctionGraph(list(inputs), list(outputs), clone=True)
    given = [In(variable) for variable in fgraph.inputs]
    add_supervisor_to_fgraph(fgraph=fgraph, input_specs=given)
    mode.optimizer.rewrite(fgraph)
    insert_deepcopy(fgraph, given, [Out(variable) for variable in fgraph.outputs])
    return BlockGraph(fgraph.freeze(), backend)


def job_mode(mode: Mode) -> Mode | None:
    """Return the mode in which the jobs of a function compiled in `mode` are compiled.

    It is the function's own, with the rewrites by which PyMC compiles a model (an invalid
    parameter gives -inf there), and with SIMD code under numba. None where the function's code
    could not contain that of jobs: under JAX, its host evaluates them.
    """
    return None if _backend(mode) in {None, "jax"} else _completed(mode)


def default_job_mode() -> Mode:
    """Return the mode of jobs that are not part of a compiled function, or of JAX's."""
    mode = get_default_mode()
    if _backend(mode) is None:  # DebugMode, for one, compiles in its own way.
        mode = Mode("cvm", mode.provided_optimizer)
    return _completed(mode)


def _completed(mode: Mode) -> Mode:
    query = mode.provided_optimizer
    if not isinstance(query, RewriteDatabaseQuery) or query.name == _COMPLETED:
        return mode  # Somebody's own rewriter has no place for more, and a map in a job has it.
    completed = vectorizing(Mode(mode.linker, as_pymc_compiles(query)))
    completed.provided_optimizer.name = _COMPLETED
    return completed


_COMPLETED = "of jobs"


def as_pymc_compiles(query: RewriteDatabaseQuery) -> RewriteDatabaseQuery:
    """Return the query with what PyMC adds to it, for the model whose context this is."""
    if "pymc" not in sys.modules:
        return query  # Nothing of PyMC's can be in the graph.
    from pymc.pytensorf import compile as pymc_compile

    function = pymc_compile([], [], mode=Mode(PerformLinker(), query))
    compiled_by: RewriteDatabaseQuery = function.maker.mode.provided_optimizer
    return compiled_by


def _backend(mode: Mode) -> Backend | None:
    linker = mode.linker
    if isinstance(linker, NumbaLinker):
        return "numba"
    if isinstance(linker, JAXLinker):
        return "jax"
    if isinstance(linker, VMLinker):
        return "python" if linker.c_thunks is False else "c"
    if isinstance(linker, CLinker | OpWiseCLinker):
        return "c"
    return "python" if type(linker) is PerformLinker else None
