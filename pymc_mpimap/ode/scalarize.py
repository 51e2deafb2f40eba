"""Graphs of small tensors, unrolled into graphs of 0-d variables.

A compiled function of scalars keeps its intermediate values in registers and allocates nothing:
for the small systems of a right-hand side that is many times faster than code on arrays. The
unrolling is an interpreter: each variable of the tensor graph is an object array whose elements
are 0-d variables, and each Op is carried out on such arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.graph.traversal import toposort
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor import basic, elemwise, math, subtensor
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.extra_ops import CumOp
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape

__all__ = ["Elements", "NotScalarError", "ScalarSystem", "as_elements", "is_constant", "scalarize"]

type Elements = NDArray[Any]  # an object array of 0-d variables


@dataclass(frozen=True)
class ScalarSystem:
    """The system y' = f(t, y, p) as a graph of 0-d float64 variables.

    Attributes
    ----------
    t : Variable
        The time.
    states : tuple of Variable
        The states.
    leaves : tuple of tuples of Variable
        For each leaf of the parameters its elements, in C order; then those of `closure`.
    derivatives : tuple of Variable
        dy/dt, one for each state: graphs of the variables above and of constants only.
    closure : tuple of Variable
        The outer variables that the function closes over, of any shape; their elements are the
        last ``len(closure)`` entries of `leaves`, in this order.
    names : tuple of str
        What the function calls its states, where that is known.
    """

    t: Variable
    states: tuple[Variable, ...]
    leaves: tuple[tuple[Variable, ...], ...]
    derivatives: tuple[Variable, ...]
    closure: tuple[Variable, ...]
    names: tuple[str, ...] = ()


class NotScalarError(Exception):
    """An Op cannot be unrolled; `variables` are what it makes, innermost graph first."""

    def __init__(self, variable: Variable, reason: str):
        super().__init__(reason)
        self.variables = [variable]


def scalarize(outputs: Sequence[Variable], known: Mapping[Variable, Elements]) -> list[Elements]:
    """Unroll a graph of tensors.

    Parameters
    ----------
    outputs : sequence of Variable
        Tensors of any shape.
    known : mapping of Variable to object array
        The inputs of the graph, with a 0-d variable for each of their elements.

    Returns
    -------
    list of object array
        For each output its elements: graphs of 0-d variables in which constants are folded and
        equal expressions are one node.

    Raises
    ------
    NotScalarError
        If an Op cannot be unrolled.

    Examples
    --------
    >>> y, a, b = pt.dvector("y", shape=(2,)), pt.dscalar("a"), pt.dscalar("b")
    >>> [product] = scalarize([np.array([[0, 1], [1, 1]]) @ y], {y: as_elements([a, b], (2,))})
    >>> product[0] is b, float(product[1].eval({a: 1.0, b: 2.0}))
    (True, 3.0)
    """
    return _run(outputs, dict(known), _Algebra())


def as_elements(values: Sequence[Any], shape: tuple[int, ...]) -> Elements:
    """Return variables as an object array; NumPy's own constructor would look inside of them."""
    made = np.empty(len(values), object)
    for i, value in enumerate(values):
        made[i] = value
    return made.reshape(shape)


def is_constant(x: Any, value: int) -> bool:
    """Say whether a variable is a constant of this value."""
    return isinstance(x, Constant) and bool(x.data == value)


def _run(outputs: Sequence[Variable], known: dict[Variable, Elements], a: _Algebra) -> list[Any]:
    def elements(v: Variable) -> Elements:
        if v not in known:
            if not isinstance(v, Constant):
                raise NotScalarError(v, "is an input of the graph that has no value")
            # None and slices are no arrays, and stay whole.
            is_array = isinstance(v.data, (np.ndarray, np.generic, int, float))
            known[v] = a.constants(v.data) if is_array else as_elements([v], ())
        return known[v]

    for node in toposort(outputs, blockers=list(known)):
        try:
            arrays = _unroll(node.op, node, [elements(i) for i in node.inputs], a)
        except NotScalarError as error:
            error.variables.extend(node.outputs)
            raise
        except Exception as error:
            raise NotScalarError(node.outputs[0], f"raised {error!r}") from error
        known.update(zip(node.outputs, arrays, strict=True))
    return [elements(v) for v in outputs]


class _Algebra:
    """Makes 0-d variables; the same expression twice is the same variable."""

    def __init__(self) -> None:
        # Keys hold identities of operands, so these are kept alive beside the result.
        self._made: dict[Any, tuple[list[Variable], Any]] = {}

    def constant(self, value: Any, dtype: str | None = None) -> Any:
        data = np.asarray(value, dtype)
        key = (data.dtype.str, data.tobytes())
        return self._made.setdefault(key, ([], pt.constant(data, dtype=data.dtype.name)))[1]

    def constants(self, values: Any, dtype: str | None = None) -> Elements:
        values = np.asarray(values, dtype)
        return as_elements([self.constant(x) for x in values.flat], values.shape)

    def cast(self, x: Any, dtype: str) -> Any:
        same = x.type.dtype == dtype
        return x if same else self.apply(ps.basic.Cast(ps.get_scalar_type(dtype)), x)

    def map(self, op: ps.ScalarOp, arrays: Sequence[Elements]) -> list[Elements]:
        """Apply a scalar Op elementwise, with broadcasting; one array for each of its outputs."""
        full = np.broadcast_arrays(*arrays)
        made = [self.outputs(op, xs) for xs in zip(*[x.flat for x in full], strict=True)]
        return [as_elements([m[k] for m in made], full[0].shape) for k in range(op.nout)]

    def reduce(self, op: Any, x: Elements, axes: Sequence[int], dtype: str) -> Elements:
        kept = tuple(n for i, n in enumerate(x.shape) if i not in axes)
        rows = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(
            *kept, x.size // max(1, int(np.prod(kept)))
        )
        made = []
        for index in np.ndindex(kept):
            row = [self.cast(e, dtype) for e in rows[index]] or [self.constant(op.identity, dtype)]
            if isinstance(op, (ps.Add, ps.Mul)):
                row = [self.apply(op, *row)]
            while len(row) > 1:
                row[:2] = [self.apply(op, *row[:2])]
            made += row
        return as_elements(made, kept)

    def apply(self, op: ps.ScalarOp, *xs: Any) -> Any:
        return self.outputs(op, xs)[0]

    def outputs(self, op: ps.ScalarOp, xs: Sequence[Any]) -> Any:
        """Apply a scalar Op to 0-d variables; it may have several outputs."""
        ids = [id(x) for x in xs]
        key = (op, *(sorted(ids) if getattr(op, "commutative", False) else ids))
        if key not in self._made:
            simple = self._simplify(op, xs)
            self._made[key] = list(xs), self._make(op, xs) if simple is None else (simple,)
        return self._made[key][1]

    def _make(self, op: ps.ScalarOp, xs: Sequence[Any]) -> tuple[Any, ...]:
        outputs = elemwise.Elemwise(op).make_node(*xs).outputs
        if not all(isinstance(x, Constant) for x in xs):
            return tuple(outputs)
        with np.errstate(all="ignore"):
            values = op.impl(*[x.data[()] for x in xs])
        pairs = zip(outputs, values if op.nout > 1 else (values,), strict=True)
        return tuple(self.constant(value, o.type.dtype) for o, value in pairs)

    def _simplify(self, op: Any, xs: Sequence[Any]) -> Any:
        """Return what the expression is without a new node, or None.

        As in PyTensor's own rewrites, 0 * x is 0 whatever x is.
        """
        dtypes = [x.type.dtype for x in xs]
        # If so, the result is a float64 too, whatever the other operands are.
        real = "float64" in dtypes and not any(d.startswith("complex") for d in dtypes)
        left, right, made = xs[0], xs[-1], None
        match op:
            case ps.Identity() | ps.Second():
                made = right
            case ps.Switch() if isinstance(left, Constant):
                made = self.cast(xs[1 if left.data else 2], ps.upcast(*dtypes[1:]))
            case ps.Add() | ps.Mul() if len(xs) == 1:
                made = left
            case ps.Mul() if real and any(is_constant(x, 0) for x in xs):
                made = self.constant(0.0)
            case ps.Add() | ps.Mul() if real and any(is_constant(x, op.identity) for x in xs):
                rest = [x for x in xs if not is_constant(x, op.identity)] or [
                    self.constant(op.identity)
                ]
                made = self.cast(self.apply(op, *rest), "float64")
            case ps.Sub() if real and is_constant(left, 0):
                made = self.apply(ps.neg, self.cast(right, "float64"))
            case ps.Sub() if real and is_constant(right, 0):
                made = self.cast(left, "float64")
            case ps.TrueDiv() | ps.Pow() if real and is_constant(right, 1):
                made = self.cast(left, "float64")
        return made


def _values(node: Apply, array: Elements) -> Any:
    """Return the numbers behind constants: an index, a length, a shape."""
    if not all(isinstance(x, Constant) for x in array.flat):
        raise NotScalarError(node.outputs[0], "takes an index or a shape that is not known yet")
    if array.ndim == 0:
        return array[()].data
    return np.array([x.data for x in array.flat] or np.zeros(0, "int64")).reshape(array.shape)


@singledispatch
def _unroll(_: Op, node: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    """Carry an Op out on arrays of 0-d variables. Any Op can be carried out on constants."""
    if not all(isinstance(x, Constant) for array in inputs for x in array.flat):
        raise NotScalarError(node.outputs[0], "is not made of operations on scalars")
    storage: list[list[Any]] = [[None] for _ in node.outputs]
    node.op.perform(node, [_values(node, array) for array in inputs], storage)
    made = zip(storage, node.outputs, strict=True)
    return [a.constants(cell[0], v.type.dtype) for cell, v in made]


def _move(op: Op, node: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    """Carry out an Op that only moves elements: let it move their numbers."""
    n = len(inputs) if isinstance(op, _MOVES_ALL) else 1
    pool = [x for array in inputs[:n] for x in array.flat]
    starts = np.cumsum([0, *(array.size for array in inputs[:n])])
    pairs = zip(inputs[:n], starts[:-1], strict=True)
    numbers = [start + np.arange(array.size).reshape(array.shape) for array, start in pairs]
    storage: list[list[Any]] = [[None] for _ in node.outputs]
    node.op.perform(node, [*numbers, *(_values(node, i) for i in inputs[n:])], storage)
    made = []
    for cell, v in zip(storage, node.outputs, strict=True):
        # An Op may have turned the numbers into the dtype of what it expects to move.
        moved = np.asarray(cell[0]).real.astype("int64")
        made.append(as_elements([a.cast(pool[k], v.type.dtype) for k in moved.flat], moved.shape))
    return made


# Ops that move the elements of all inputs, and of the first by what the others say.
_MOVES_ALL = (
    *(basic.ExtractDiag, basic.Join, basic.MakeVector, elemwise.DimShuffle),
    *(basic.ScalarFromTensor, basic.TensorFromScalar),
)
_MOVES_FIRST = (
    *(basic.Alloc, basic.Split, Reshape, SpecifyShape),
    *(subtensor.Subtensor, subtensor.AdvancedSubtensor),
)
for _op in (*_MOVES_ALL, *_MOVES_FIRST):
    _unroll.register(_op, _move)


@_unroll.register(subtensor.IncSubtensor)
@_unroll.register(subtensor.AdvancedIncSubtensor)
def _increment(op: Any, node: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    x, y, *indices = inputs
    values = [_values(node, i) for i in indices]
    index = tuple(subtensor.unflatten_index_variables(values, op.idx_list))
    where = np.asarray(np.arange(x.size).reshape(x.shape)[index])
    made = x.flatten()
    for k, given in zip(where.flat, np.broadcast_to(y, where.shape).flat, strict=True):
        old = x.flat[k] if getattr(op, "ignore_duplicates", False) else made[k]
        new = given if op.set_instead_of_inc else a.apply(ps.add, old, given)
        made[k] = a.cast(new, node.outputs[0].type.dtype)
    return [made.reshape(x.shape)]


@_unroll.register
def _(op: ps.ScalarOp, _: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    return a.map(op, inputs)


@_unroll.register
def _(op: elemwise.Elemwise, _: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    return a.map(op.scalar_op, inputs)


@_unroll.register(elemwise.CAReduce)
def _(op: Any, node: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    axes = tuple(range(inputs[0].ndim)) if op.axis is None else op.axis
    return [a.reduce(op.scalar_op, inputs[0], axes, node.outputs[0].type.dtype)]


@_unroll.register
def _(_: math.Dot, node: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    [products] = a.map(ps.mul, [inputs[0][:, :, None], inputs[1][None, :, :]])
    return [a.reduce(ps.add, products, [1], node.outputs[0].type.dtype)]


@_unroll.register(CumOp)
def _(op: Any, _: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    made = inputs[0].flatten() if op.axis is None else np.moveaxis(inputs[0], op.axis, 0).copy()
    for k in range(1, len(made)):
        pair = [made[k - 1 : k], made[k : k + 1]]
        [made[k : k + 1]] = a.map(ps.add if op.mode == "add" else ps.mul, pair)
    return [np.moveaxis(made, 0, op.axis or 0)]


@_unroll.register
def _(_: Shape, __: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    return [a.constants(inputs[0].shape, "int64")]


@_unroll.register
def _(op: Shape_i, _: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    return [a.constants(inputs[0].shape[op.i], "int64")]


@_unroll.register
def _(_: CheckAndRaise, node: Apply, inputs: list[Elements], __: _Algebra) -> list[Elements]:
    if not all(is_constant(condition[()], True) for condition in inputs[1:]):
        raise NotScalarError(node.outputs[0], "checks a condition, which a solver cannot report")
    return inputs[:1]


@_unroll.register
def _(op: OpFromGraph, _: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    return _run(op.fgraph.outputs, dict(zip(op.fgraph.inputs, inputs, strict=True)), a)


@_unroll.register
def _(op: Blockwise, node: Apply, inputs: list[Elements], a: _Algebra) -> list[Elements]:
    splits = [x.ndim - len(core) for x, core in zip(inputs, op.inputs_sig, strict=True)]
    batch = np.broadcast_shapes(*[x.shape[:n] for x, n in zip(inputs, splits, strict=True)])
    cores = [x.shape[n:] for x, n in zip(inputs, splits, strict=True)]
    dtypes = [v.type.dtype for v in node.inputs]
    core_inputs = [pt.tensor(dtype=d, shape=s) for d, s in zip(dtypes, cores, strict=True)]
    core = op.core_op.make_node(*core_inputs)
    full = [np.broadcast_to(x, batch + s) for x, s in zip(inputs, cores, strict=True)]
    made = [_unroll(core.op, core, [x[k] for x in full], a) for k in np.ndindex(batch)]
    return [np.stack(m).reshape(batch + m[0].shape) for m in zip(*made, strict=True)]
