"""SolveEach, the solves of several jobs as one Op, for the numba linker.

PyTensor's own loop over the jobs (Blockwise) would be compiled anew for each system, with the
broadcasting of arrays of any shape: 6 s. This one is in the driver, which is there already.
"""

# mypy: disallow-untyped-decorators=False
# PyTensor's have no types.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, override

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.tensor.blockwise import Blockwise, vectorize_node_fallback
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.type import TensorType

from pymc_mpimap.ode.evaluate import evaluate
from pymc_mpimap.ode.methods import SCIPY, in_force
from pymc_mpimap.ode.op import SolveIVP
from pymc_mpimap.ode.schedule import DIFFERENT_NUMBERS

__all__ = ["SolveEach"]


class SolveEach(Op):
    """Solve an initial value problem for each of several jobs.

    No user meets it: it takes the place of a Blockwise when all derivatives have been taken.

    Parameters
    ----------
    core : SolveIVP
        What is done for one job.
    per_job : sequence of bool
        For each input, whether there is one a job: these have a further first axis.
    """

    __props__ = ("core", "per_job")

    def __init__(self, core: SolveIVP, per_job: Sequence[bool]):
        self.core = core
        self.per_job = tuple(per_job)

    @override
    def make_node(self, *inputs: Any) -> Apply:
        shapes = self._output_shapes([v.type.shape for v in inputs])
        return Apply(self, list(inputs), [TensorType("float64", shape=s)() for s in shapes])

    def _output_shapes(self, shapes: Sequence[Any]) -> list[tuple[Any, ...]]:
        n_jobs = shapes[self.per_job.index(True)][0]
        cores = [s[flag:] for s, flag in zip(shapes, self.per_job, strict=True)]
        return [(n_jobs, *shape) for shape in self.core.output_shapes(cores)]

    def infer_shape(
        self,
        node: Apply,  # noqa: ARG002 # PyTensor passes it
        shapes: Any,
    ) -> list[Any]:
        """Return the outputs' shapes without solving."""
        return self._output_shapes(shapes)

    @override
    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        sizes = {x.shape[0] for x, flag in zip(inputs, self.per_job, strict=True) if flag}
        if len(sizes) > 1:
            raise ValueError(DIFFERENT_NUMBERS)
        (n_jobs,) = sizes
        rows = [
            evaluate(
                self.core.solve,
                [x[j] if flag else x for x, flag in zip(inputs, self.per_job, strict=True)],
            )
            for j in range(n_jobs)
        ]
        shapes = self._output_shapes([x.shape for x in inputs])
        for k, (storage, shape) in enumerate(zip(output_storage, shapes, strict=True)):
            storage[0] = np.array([row[k] for row in rows]).reshape(shape)

    @override
    def __str__(self) -> str:
        return f"SolveEach{{{self.core}}}"


@node_rewriter([Blockwise])
def _solve_each(_fgraph: Any, node: Apply) -> list[Variable] | None:
    """Replace the Blockwise of a solve over one axis."""
    op: Any = node.op
    core = op.core_op
    if not isinstance(core, SolveIVP) or in_force(core.system.method) in SCIPY:
        return None
    per_job = [not v.type.broadcastable[0] for v in node.inputs if op.batch_ndim(node) == 1]
    if not any(per_job):
        return None
    known: dict[Any, Any] = {}
    inputs = [
        v if flag else _shared(v, known) for v, flag in zip(node.inputs, per_job, strict=True)
    ]
    outputs: Any = SolveEach(core, per_job)(*inputs, return_list=True)
    return [old.type.filter_variable(new) for old, new in zip(node.outputs, outputs, strict=True)]


def _shared(variable: Any, known: dict[Any, Any]) -> Any:
    """Return a variable without its first axis, which is of length 1."""
    if variable in known:
        return known[variable]
    op = None if variable.owner is None else variable.owner.op
    if isinstance(op, DimShuffle) and op.new_order == ("x", *range(variable.type.ndim - 1)):
        result = variable.owner.inputs[0]
    elif isinstance(op, Elemwise) and len(variable.owner.outputs) == 1:
        result = op(*(_shared(v, known) for v in variable.owner.inputs))
    elif isinstance(variable, Constant):
        result = pt.constant(variable.data[0])
    else:
        result = variable[0]
    known[variable] = result
    return result


@_vectorize_node.register(SolveIVP)
def _vectorize(op: SolveIVP, node: Apply, *batched: Any) -> Any:
    """Vectorize a solve with inputs of the types that it has: Blockwise would take any."""
    kinds = (v.type.dtype for v in node.inputs)
    cast = [v.astype(dtype) for v, dtype in zip(batched, kinds, strict=True)]
    return vectorize_node_fallback(op, node, *cast)


# After solves have been merged.
optdb.register("ode_solve_each", dfs_rewriter(_solve_each), "numba", position=48.06)
