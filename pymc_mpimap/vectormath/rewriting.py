"""Put the vectorizable functions in the place of PyTensor's, for the numba linker."""

# mypy: disallow-untyped-decorators=False
# PyTensor's have no types.

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytensor.scalar as ps
import pytensor.scalar.math as psm
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.rewriting.basic import (
    SequentialGraphRewriter,
    dfs_rewriter,
    in2out,
    node_rewriter,
)
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.numba.linker import NumbaLinker
from pytensor.tensor.basic import Alloc
from pytensor.tensor.blas import BatchedDot
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedIncSubtensor, IncSubtensor

from pymc_mpimap.vectormath import ops

__all__ = ["has_rows", "is_vectorizing", "vectorizing"]

# After PyTensor has simplified and stabilized the graph, and before it fuses loops (49).
_BEFORE_FUSION, _AFTER_FUSION = 48.5, 49.2
# After PyTensor has turned loops over one element into operations on scalars.
_AFTER_SCALARS = 100.5
# Elements of a matrix up to which loops are quicker than BLAS.
_SMALL = 256
# Columns that one loop over the rows fills in.
_MOST_COLUMNS = 32
_exp, _log, _log1p, _expm1, _tanh = (
    Elemwise(op()) for op in (ops.Exp, ops.Log, ops.Log1p, ops.Expm1, ops.Tanh)
)
_decay, _softplus, _sigmoid = (Elemwise(op()) for op in (ops.Decay, ops.Softplus, ops.Sigmoid))
_to_float = Elemwise(ps.convert_to_float64)
_switch, _less, _negative = Elemwise(ps.switch), Elemwise(ps.lt), Elemwise(ps.neg)


def _log1mexp(x: Any) -> Any:
    """Return log(1 - exp(x)), as PyTensor computes it: two ways, each with its own range."""
    far = _less(x, np.log(0.5))
    return _switch(far, _log1p(_negative(_exp(x))), _log(_negative(_expm1(x))))


_REPLACEMENTS: dict[type, Any] = {
    ps.Exp: _exp,
    ps.Log: _log,
    ps.Log1p: _log1p,
    ps.Expm1: _expm1,
    ps.Tanh: _tanh,
    psm.Softplus: lambda x: _softplus(x, _decay(x)),
    psm.Sigmoid: lambda x: _sigmoid(x, _decay(x)),
    psm.Log1mexp: _log1mexp,
}


@node_rewriter([Elemwise])
def _substitute(_fgraph: Any, node: Apply[Any]) -> list[Any] | None:
    """Replace a function whose value is a float64."""
    replacement = _REPLACEMENTS.get(type(node.op.scalar_op))
    if replacement is None or node.outputs[0].type.dtype != "float64":
        return None
    (x,) = node.inputs
    return [replacement(x if x.type.dtype == "float64" else _to_float(x))]


@node_rewriter([CAReduce])
def _sum(_fgraph: Any, node: Apply[Any]) -> list[Any] | None:
    """Replace a sum over the last axes or the first ones.

    PyTensor would make it part of the loop that computes the summands. As the order of a sum is
    not LLVM's to change, such a loop is not vectorized, and each sum waits for the one before.
    Its own sum over first axes takes 3 to 5 s to compile.
    """
    (x,) = node.inputs
    op = node.op
    if not isinstance(op.scalar_op, ps.Add):
        return None
    if {x.type.dtype, node.outputs[0].type.dtype, op.acc_dtype or "float64"} != {"float64"}:
        return None
    axes = range(x.type.ndim) if op.axis is None else op.axis
    n_kept = x.type.ndim - len(axes)
    if not axes:
        return None
    if tuple(axes) == tuple(range(n_kept, x.type.ndim)):
        return [ops.LaneSum(n_kept)(x)]
    if tuple(axes) == tuple(range(len(axes))):
        return [ops.StackSum(len(axes))(x)]
    return None


@node_rewriter([IncSubtensor])
def _collect_columns(fgraph: Any, node: Apply[Any]) -> list[Any] | None:
    """Replace a matrix of zeros to which columns are added, one after the other.

    The derivatives by a vector are such a matrix where its elements are used one by one.
    """
    kind = node.outputs[0].type
    if kind.ndim != 2 or kind.dtype != "float64" or (kind.shape[1] or math.inf) > _MOST_COLUMNS:
        return None
    columns = _columns_of(node.outputs[0])
    shapes = getattr(fgraph, "shape_feature", None)
    if not columns or shapes is None:
        return None
    # A vector that is known to be as long as the matrix tells how many rows there are; others may
    # turn out to be of one number, for all rows.
    same = [k for k, v in columns.items() if shapes.same_shape(v, node.outputs[0], 0, 0)]
    if not same:
        return None
    places = sorted(columns, key=lambda k: k not in same)
    return [ops.Columns(kind.shape[1], tuple(places))(*(columns[k] for k in places))]


def _columns_of(matrix: Any) -> dict[int, Any] | None:
    """Return the columns of a matrix that are not zero, or None where that is not known."""
    producer = matrix.owner
    op = None if producer is None else producer.op
    if isinstance(op, Alloc):
        value = producer.inputs[0]
        return {} if isinstance(value, Constant) and not np.any(value.data) else None
    if isinstance(op, ops.Columns):
        return dict(zip(op.places, producer.inputs, strict=True))
    if not isinstance(op, IncSubtensor) or op.idx_list != (slice(None), 0):
        return None
    before, vector, index = producer.inputs
    columns = _columns_of(before)
    right = vector.type.dtype == "float64" and vector.type.broadcastable == (False,)
    n_columns = matrix.type.shape[1]
    if columns is None or not right or not isinstance(index, Constant):
        return None
    k = int(index.data) + n_columns * (int(index.data) < 0)
    if not 0 <= k < n_columns:
        return None
    added = k in columns and not op.set_instead_of_inc
    columns[k] = columns[k] + vector if added else vector
    return columns


@node_rewriter([ops.Rows])
def _forget_rows(_fgraph: Any, node: Apply[Any]) -> list[Any]:
    """Take out what was said of the number of rows."""
    return [node.inputs[0]]


@node_rewriter([BatchedDot])
def _multiply(_fgraph: Any, node: Apply[Any]) -> list[Any] | None:
    """Replace products of small matrices with a vector each."""
    x: Any
    y: Any
    x, y = node.inputs
    *_, columns = y.type.shape
    size = math.prod(n or math.inf for n in x.type.shape[1:])
    if columns != 1 or size > _SMALL or {x.type.dtype, y.type.dtype} != {"float64"}:
        return None
    producer = x.owner
    transposed = (
        producer is not None
        and isinstance(producer.op, DimShuffle)
        and producer.op.new_order == (0, 2, 1)
    )
    matrices = producer.inputs[0] if transposed else x
    products: Any = ops.MatricesTimesVectors(transposed=transposed)(matrices, y[:, :, 0])
    return [products[:, :, None]]


@node_rewriter([Elemwise])
def _inline(_fgraph: Any, node: Apply[Any]) -> Any:
    """Have a fused loop's body inlined into the loop if one of the functions is in it."""
    composite = node.op.scalar_op
    if type(composite) is not ps.Composite:
        return None
    if not any(isinstance(inner.op, ops.VectorizableOp) for inner in composite.fgraph.apply_nodes):
        return None
    inner: Any = composite.fgraph
    inner = inner.unfreeze()
    to_inline: Any = ops.InlinedComposite
    inlined = Elemwise(to_inline(inner.inputs, inner.outputs), node.op.inplace_pattern)
    return inlined(*node.inputs, return_list=True)


@node_rewriter([ops.InlinedComposite])
def _call(_fgraph: Any, node: Apply[Any]) -> Any:
    """Leave a body alone that PyTensor has taken out of its loop, for there was one element.

    PyTensor wraps what it calls on scalars in functions that cannot be inlined.
    """
    inner: Any = node.op.fgraph.unfreeze()
    return ps.Composite(inner.inputs, inner.outputs)(*node.inputs, return_list=True)


@node_rewriter([AdvancedIncSubtensor])
def _store(_fgraph: Any, node: Apply[Any]) -> list[Any] | None:
    """Compute what is added at indices before it is added.

    PyTensor would do both in one loop. As an index may occur twice, that loop is not vectorized.
    """
    target, values, *indices = node.inputs
    producer = values.owner
    if producer is None or not isinstance(producer.op, Elemwise):
        return None
    if not isinstance(producer.op.scalar_op, ops.InlinedComposite | ops.VectorizableOp):
        return None
    return [node.op(target, ops.Stored()(values), *indices)]


def has_rows(variable: Any, n: Any) -> Any:
    """Return a variable of which `vectorizing` modes know how many rows it has."""
    return ops.Rows()(variable, n)


def is_vectorizing(mode: Mode) -> bool:
    """Say whether `vectorizing` makes another mode of this one."""
    # There is no place for further rewrites in somebody's own rewriter.
    if not isinstance(mode.linker, NumbaLinker):
        return False
    if not isinstance(mode.provided_optimizer, RewriteDatabaseQuery):
        return False
    from pymc_mpimap.vectormath.dispatch import processor_suits  # Numba is slow to import.

    return processor_suits()


def vectorizing(mode: Mode) -> Mode:
    """Return a mode whose compiled loops are vectorized.

    Parameters
    ----------
    mode
        A mode of PyTensor. One with another linker than numba's is returned as it is, and so is
        one of a processor that cannot multiply and add in one step.

    Returns
    -------
    Mode
        The mode with the rewrites that put in the functions of `pymc_mpimap.vectormath`.
    """
    if not is_vectorizing(mode):
        return mode
    before = SequentialGraphRewriter(
        [
            dfs_rewriter(_substitute),
            dfs_rewriter(_sum),
            dfs_rewriter(_multiply),
            in2out(_collect_columns),
            dfs_rewriter(_forget_rows),
        ]
    )
    before.name = "vectorizable_functions"
    after = SequentialGraphRewriter([dfs_rewriter(_inline), dfs_rewriter(_store)])
    after.name = "inlined_composites"
    scalars = dfs_rewriter(_call)
    scalars.name = "called_composites"
    vectorizing_mode: Mode = mode.register(
        (before, _BEFORE_FUSION), (after, _AFTER_FUSION), (scalars, _AFTER_SCALARS)
    )
    return vectorizing_mode
