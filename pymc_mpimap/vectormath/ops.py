"""Ops that stand for the vectorizable functions, for sums and matrices, in a compiled graph.

They are put into a graph after PyTensor's own rewrites, for the numba linker alone. No user meets
them, so they have neither derivatives nor C code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.graph.utils import MethodNotDefined
from pytensor.scalar.basic import Composite, ScalarOp, upgrade_to_float
from pytensor.tensor.type import TensorType

__all__ = [
    "Columns",
    "Decay",
    "Exp",
    "Expm1",
    "InlinedComposite",
    "LaneSum",
    "Log",
    "Log1p",
    "Rows",
    "Sigmoid",
    "Softplus",
    "StackSum",
    "Stored",
    "Tanh",
    "VectorizableOp",
]


class VectorizableOp(ScalarOp):
    """A function of float64 that has branch-free code in `pymc_mpimap.vectormath.functions`."""

    nin = 1
    nout = 1
    function: str

    def __init__(self, output_types_preference: Any = None, name: str | None = None) -> None:
        super().__init__(  # type: ignore[no-untyped-call] # PyTensor's
            output_types_preference or upgrade_to_float, name or self.function
        )

    def supports_c_code(self, _inputs: Any, _outputs: Any) -> bool:
        """Say yes: PyTensor fuses such Ops only, whatever the linker."""
        return True

    def c_code(self, *_: Any) -> str:
        """Refuse: these Ops are for the numba linker."""
        raise MethodNotDefined


class Exp(VectorizableOp):
    """The exponential function."""

    function = "exp"

    def impl(self, x: Any) -> Any:
        """Return the value by NumPy."""
        return np.exp(x)


class Expm1(VectorizableOp):
    """``exp(x) - 1``."""

    function = "expm1"

    def impl(self, x: Any) -> Any:
        """Return the value by NumPy."""
        return np.expm1(x)


class Log(VectorizableOp):
    """The natural logarithm."""

    function = "log"

    def impl(self, x: Any) -> Any:
        """Return the value by NumPy."""
        return np.log(x)


class Log1p(VectorizableOp):
    """``log(1 + x)``."""

    function = "log1p"

    def impl(self, x: Any) -> Any:
        """Return the value by NumPy."""
        return np.log1p(x)


class Tanh(VectorizableOp):
    """The hyperbolic tangent."""

    function = "tanh"

    def impl(self, x: Any) -> Any:
        """Return the value by NumPy."""
        return np.tanh(x)


class Decay(VectorizableOp):
    """``exp(-abs(x))``, which softplus and sigmoid of the same argument share."""

    function = "decay"

    def impl(self, x: Any) -> Any:
        """Return the value by NumPy."""
        return np.exp(-np.abs(x))


class Softplus(VectorizableOp):
    """``log(1 + exp(x))`` of ``x`` and its `Decay`."""

    nin = 2
    function = "softplus"

    def impl(self, x: Any, decayed: Any) -> Any:
        """Return the value by NumPy."""
        return np.maximum(x, 0.0) + np.log1p(decayed)


class Sigmoid(VectorizableOp):
    """``1 / (1 + exp(-x))`` of ``x`` and its `Decay`."""

    nin = 2
    function = "sigmoid"

    def impl(self, x: Any, decayed: Any) -> Any:
        """Return the value by NumPy."""
        return np.where(x < 0.0, decayed, 1.0) / (1.0 + decayed)


class InlinedComposite(Composite):
    """A fused scalar graph whose code becomes part of the loop, however long it is.

    LLVM calls a long function instead, and a loop with a call in it is not vectorized.
    """


class LaneSum(Op):
    """The sum over the last axes of a float64 array, in an order that depends on their size only.

    Parameters
    ----------
    n_kept
        The number of leading axes that stay.
    """

    __props__ = ("n_kept",)

    def __init__(self, n_kept: int) -> None:
        self.n_kept = n_kept

    def make_node(self, *inputs: Variable[Any, Any]) -> Apply[Any]:
        """Return a sum of an array."""
        (x,) = inputs
        return Apply(self, [x], [TensorType("float64", shape=x.type.shape[: self.n_kept])()])

    def infer_shape(self, _node: Any, shapes: Any) -> list[Any]:
        """Return the shape of what is kept."""
        return [shapes[0][: self.n_kept]]

    def perform(self, _node: Any, inputs: Any, output_storage: Any) -> None:
        """Sum by NumPy, in NumPy's order."""
        (x,) = inputs
        output_storage[0][0] = np.asarray(x.sum(axis=tuple(range(self.n_kept, x.ndim))))


class StackSum(Op):
    """The sum over the first axes of a float64 array, one element after the other.

    Parameters
    ----------
    n_summed
        The number of leading axes that go.
    """

    __props__ = ("n_summed",)

    def __init__(self, n_summed: int) -> None:
        self.n_summed = n_summed

    def make_node(self, *inputs: Variable[Any, Any]) -> Apply[Any]:
        """Return a sum of an array."""
        (x,) = inputs
        return Apply(self, [x], [TensorType("float64", shape=x.type.shape[self.n_summed :])()])

    def infer_shape(self, _node: Any, shapes: Any) -> list[Any]:
        """Return the shape of what is left."""
        return [shapes[0][self.n_summed :]]

    def perform(self, _node: Any, inputs: Any, output_storage: Any) -> None:
        """Sum by NumPy, in NumPy's order."""
        (x,) = inputs
        output_storage[0][0] = np.asarray(x.sum(axis=tuple(range(self.n_summed))))


class Columns(Op):
    """A float64 matrix of some columns, zero elsewhere.

    Parameters
    ----------
    n_columns
        How many columns the matrix has.
    places
        Which column each of the vectors is. The first of them says how many rows there are;
        others may be of one number, for all rows.
    """

    __props__ = ("n_columns", "places")

    def __init__(self, n_columns: int, places: tuple[int, ...]) -> None:
        self.n_columns = n_columns
        self.places = places

    def make_node(self, *inputs: Variable[Any, Any]) -> Apply[Any]:
        """Return the matrix of these vectors."""
        vectors: Any = inputs
        n = next((v.type.shape[0] for v in vectors if v.type.shape[0] is not None), None)
        return Apply(self, list(inputs), [TensorType("float64", shape=(n, self.n_columns))()])

    def infer_shape(self, _node: Any, shapes: Any) -> list[Any]:
        """Return the shape of the matrix."""
        return [(shapes[0][0], self.n_columns)]

    def perform(self, _node: Any, inputs: Any, output_storage: Any) -> None:
        """Fill in the matrix."""
        matrix = np.zeros((len(inputs[0]), self.n_columns))
        for place, vector in zip(self.places, inputs, strict=True):
            matrix[:, place] = vector
        output_storage[0][0] = matrix


class Rows(Op):
    """An array that is known to have so many rows, while a graph is simplified.

    All that depends on the number of rows is then expressed by one variable, and nothing need be
    compared. It is taken out before the graph is compiled.
    """

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012 # PyTensor's name and type

    def make_node(self, *inputs: Variable[Any, Any]) -> Apply[Any]:
        """Return an array, and an integer, as the array."""
        x, n = inputs
        return Apply(self, [x, n], [x.type()])

    def infer_shape(self, node: Any, shapes: Any) -> list[Any]:
        """Return the array's shape, with this number of rows."""
        return [(node.inputs[1], *shapes[0][1:])]

    def perform(self, _node: Any, inputs: Any, output_storage: Any) -> None:
        """Return the array."""
        output_storage[0][0] = inputs[0]


class MatricesTimesVectors(Op):
    """The products of small matrices with a vector each, in float64.

    Parameters
    ----------
    transposed
        Whether each matrix is transposed first.
    """

    __props__ = ("transposed",)

    def __init__(self, *, transposed: bool) -> None:
        self.transposed = transposed

    def make_node(self, *inputs: Variable[Any, Any]) -> Apply[Any]:
        """Return the products of matrices, shape (n, rows, columns), and vectors."""
        x, v = inputs
        n = x.type.shape[0] if x.type.shape[0] is not None else v.type.shape[0]
        length = x.type.shape[2 if self.transposed else 1]
        return Apply(self, [x, v], [TensorType("float64", shape=(n, length))()])

    def infer_shape(self, _node: Any, shapes: Any) -> list[Any]:
        """Return the shape of the products."""
        return [(shapes[0][0], shapes[0][2 if self.transposed else 1])]

    def perform(self, _node: Any, inputs: Any, output_storage: Any) -> None:
        """Multiply by NumPy, in NumPy's order."""
        x, v = inputs
        matrices = x.swapaxes(1, 2) if self.transposed else x
        output_storage[0][0] = (matrices @ v[:, :, None])[:, :, 0]


class Stored(Op):
    """An array as it is: what computes it and what uses it stay two loops."""

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012 # PyTensor's name and type

    def make_node(self, *inputs: Variable[Any, Any]) -> Apply[Any]:
        """Return the same array."""
        (x,) = inputs
        return Apply(self, [x], [x.type()])

    def infer_shape(self, _node: Any, shapes: Any) -> list[Any]:
        """Return the array's shape."""
        return list(shapes)

    def perform(self, _node: Any, inputs: Any, output_storage: Any) -> None:
        """Return the array."""
        output_storage[0][0] = inputs[0]
