"""An array of unknown values that NumPy's functions and PyTensor's functions both take."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from types import EllipsisType, NoneType
from typing import Any, NoReturn

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.tensor.basic import _as_tensor_variable, infer_static_shape

from pymc_mpimap.ode.numpy_names import REDUCTIONS, RENAMED, SAME_NAMES, UFUNCS, VIEWS
from pymc_mpimap.reals import real_numbers
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.tables import opened

__all__ = ["NotTraceableError", "TracedArray", "plain"]


# What indexes a view; any other index makes a copy.
_BASIC = (int, np.integer, slice, NoneType, EllipsisType)


class NotTraceableError(TypeError):
    """Something that an array of unknown values cannot do.

    Attributes
    ----------
    kind : str
        ``"branch"``, ``"number"``, ``"assignment"``, ``"function"``, ``"shape"`` or ``"other"``.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class TracedArray:
    """A tensor variable that behaves as a NumPy array does.

    It has NumPy's operators, methods and attributes, is taken by NumPy's functions (they are
    looked up by name among PyTensor's) and by PyTensor's, and can be assigned into. A slice is a
    view, as in NumPy: it reads from its array and writes into it.

    Parameters
    ----------
    variable : Variable
        A tensor of static shape.
    writable : bool
        Whether it can be assigned into.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> y = TracedArray(pt.dvector("y", shape=(2,)))
    >>> dy = np.zeros_like(y)
    >>> dy[0] = np.exp(-y[1])
    >>> dy.variable.eval({y.variable: [1.0, 0.0]})
    array([1., 0.])
    """

    __slots__ = ("_index", "_source", "_variable", "_writable", "name")
    # Equality is that of elements, as NumPy's; mypy knows no other way to say unhashable.
    __hash__ = None  # type: ignore[assignment] # as NumPy's, whose == gives an array too

    def __init__(self, variable: Variable, *, writable: bool = True):
        self._variable = variable
        self._source: TracedArray | None = None
        self._index: Any = None
        self._writable = writable

    @property
    def variable(self) -> Any:
        """The tensor as it is now; a view takes it from its array, which may have changed."""
        if self._source is None:
            return self._variable
        return self._source.variable[self._index]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of its dimensions, which are numbers."""
        variable = self.variable
        shape = variable.type.shape
        if None in shape:
            shape = infer_static_shape(variable.shape)[1]
        if None in shape:
            raise NotTraceableError(
                "shape", "the shape of an array depends on values that are not known yet"
            )
        return tuple(int(n) for n in shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return int(self.variable.type.ndim)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what type its elements are."""
        return np.dtype(str(self.variable.type.dtype))

    @property
    def T(self) -> Any:  # noqa: N802 (NumPy's name)
        """The transpose."""
        return _call(".transpose", self.variable.transpose, (), {})

    def reshape(self, *shape: Any, **_: Any) -> Any:
        """Return the elements in another shape, given as one tuple or as numbers."""
        new = shape[0] if len(shape) == 1 else shape
        return _call(".reshape", self.variable.reshape, (new if np.ndim(new) else (new,),), {})

    def ravel(self, *_: Any) -> Any:
        """Return the elements as a vector."""
        return _call(".ravel", self.variable.flatten, (), {})

    def copy(self, *_: Any) -> TracedArray:
        """Return a new array with these values."""
        return TracedArray(self.variable)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if isinstance(getattr(np, name, None), np.ufunc):
            # NumPy computes np.exp of an array of objects by their methods of that name.
            return lambda *others: _call(f"numpy.{name}", _ufunc(name), (self, *others), {})
        attribute = getattr(self.variable, name)
        if not callable(attribute):
            return _wrapped(attribute)
        return lambda *args, **kwargs: _call(f".{name}", attribute, args, kwargs)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a scalar")
        return self.shape[0]

    def __iter__(self) -> Iterator[TracedArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> TracedArray:
        index = plain(index)
        made = TracedArray(self.variable[index])
        parts = index if isinstance(index, tuple) else (index,)
        if made.ndim and all(isinstance(part, _BASIC) for part in parts):
            made._source, made._index = self, index
        return made

    def __setitem__(self, index: Any, value: Any) -> None:
        self._assign(self.variable[plain(index)].set(plain(value)))

    def _assign(self, variable: Any) -> None:
        if not self._writable:
            raise NotTraceableError("assignment", "assigns into a transposed or reshaped array")
        if self._source is not None:
            self._source[self._index] = variable
        else:
            self._variable = variable

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is not None and not isinstance(out[0], TracedArray):
            raise NotTraceableError("assignment", "writes unknown values into an array of numbers")
        if method == "__call__":
            made = _call(f"numpy.{ufunc.__name__}", _ufunc(ufunc.__name__), inputs, kwargs)
        elif method == "reduce" and ufunc.__name__ in REDUCTIONS:
            kwargs.setdefault("axis", 0)
            function = getattr(pt, REDUCTIONS[ufunc.__name__])
            made = _call(f"numpy.{ufunc.__name__}.reduce", function, inputs, kwargs)
        else:
            raise _no_twin(f"numpy.{ufunc.__name__}.{method}")
        if out is None:
            return made
        out[0][...] = made
        return out[0]

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        name, module = function.__name__, function.__module__
        if name in _DEFINED:
            return _DEFINED[name](*args, **_options(kwargs))
        if module == "numpy.linalg" and hasattr(pt.linalg, name):
            return _call(f"{module}.{name}", getattr(pt.linalg, name), args, kwargs)
        if module == "numpy" and name in SAME_NAMES:
            return _call(f"numpy.{name}", getattr(pt, name), args, kwargs)
        try:
            # NumPy's own code, where it is made of functions and operators that are known here.
            # By its name in quotes: NumPy's stubs do not have it.
            return getattr(function, "_implementation")(*args, **kwargs)  # noqa: B009
        except Exception as error:
            if isinstance(error, NotTraceableError) and error.kind == "branch":
                raise
            raise _no_twin(f"{module}.{name}") from error

    def __bool__(self) -> NoReturn:
        raise NotTraceableError("branch", "takes a decision that depends on values not known yet")

    def _number(self) -> NoReturn:
        raise NotTraceableError("number", "needs a number where the value is not known yet")

    __float__ = __int__ = __index__ = __complex__ = _number


def plain(value: Any) -> Any:
    """Return the value with variables in the place of traced arrays, also inside of lists."""
    if isinstance(value, TracedArray):
        return value.variable
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        if value.ndim == 0:
            return plain(value[()])
        flat = [pt.as_tensor_variable(plain(v)) for v in value.flat]
        return pt.stack(flat).reshape(value.shape) if value.ndim > 1 else pt.stack(flat)
    if isinstance(value, np.ndarray) or opened(value) is not None:
        return _numbers(value)
    return value


def _numbers(value: Any) -> np.ndarray:
    try:
        return real_numbers(value, "the array that it uses", real=False)
    except NotRealError as error:
        refusal = str(error.refusal())
        raise NotTraceableError("other", f"cannot be computed: {refusal}") from error


def _operand(value: Any) -> Any:
    """Return an operand; PyTensor would take an integer as an int8, in which 100 + 100 is -56."""
    value = plain(value)
    return np.int64(value) if type(value) is int else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Variable):
        return TracedArray(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_wrapped(v) for v in value])
    return value


def _call(label: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function of PyTensor with traced arrays."""
    try:
        made = _wrapped(function(*plain(args), **_options(kwargs)))
    except NotTraceableError:
        raise
    except (TypeError, NotImplementedError) as error:
        message = f"{label} cannot be traced with these arguments: {error}"
        raise NotTraceableError("function", message) from error
    if label.rpartition(".")[2] in VIEWS and isinstance(made, TracedArray):
        return TracedArray(made.variable, writable=False)
    return made


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says the default, or how NumPy should store the result."""
    storage = ("order", "subok", "casting", "device")
    return {
        key: plain(value)
        for key, value in kwargs.items()
        if value is not None and key not in storage and not (key == "where" and value is True)
    }


def _no_twin(label: str) -> NotTraceableError:
    return NotTraceableError("function", f"{label} has no twin in PyTensor")


def _ufunc(name: str) -> Callable[..., Any]:
    function = UFUNCS.get(name) or getattr(pt, RENAMED.get(name, name), None)
    if not callable(function):
        raise _no_twin(name)
    return lambda *args, **kwargs: function(*map(_operand, args), **kwargs)


def _like(fill: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, dtype=None, shape=None: TracedArray(
        fill(np.shape(a) if shape is None else shape, dtype=dtype or "float64")
    )


def _at_least(function: Callable[[Any], Any]) -> Callable[..., Any]:
    def each(*arrays: Any) -> Any:
        made = tuple(TracedArray(function(plain(a))) for a in arrays)
        return made if len(made) > 1 else made[0]

    return each


def _clip(a: Any, a_min: Any = None, a_max: Any = None, **bounds: Any) -> Any:
    low, high = bounds.get("min", a_min), bounds.get("max", a_max)
    if low is not None:
        a = np.maximum(a, low)
    return a if high is None else np.minimum(a, high)


def _interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None) -> Any:
    """Interpolate linearly: a sum of ramps, so that x may be unknown and xp may not."""
    xp = np.asarray(xp, float)
    total = fp[0]
    for k, width in enumerate(np.diff(xp)):
        ramp = (
            (np.clip(x, xp[k], xp[k + 1]) - xp[k]) / width if width else np.greater_equal(x, xp[k])
        )
        total = (fp[k + 1] - fp[k]) * ramp + total
    if left is not None:
        total = np.where(np.less(x, xp[0]), left, total)
    return total if right is None else np.where(np.greater(x, xp[-1]), right, total)


# NumPy's functions of arrays that are made of others here.
_DEFINED: dict[str, Callable[..., Any]] = {
    "amax": np.max,
    "amin": np.min,
    "atleast_1d": _at_least(pt.atleast_1d),
    "atleast_2d": _at_least(pt.atleast_2d),
    "clip": _clip,
    "empty_like": _like(pt.zeros),
    "interp": _interp,
    "ones_like": _like(pt.ones),
    "ravel": lambda a: a.ravel(),
    "where": lambda *args: TracedArray(pt.where(*map(_operand, args))),
    "zeros_like": _like(pt.zeros),
}


@_as_tensor_variable.register(TracedArray)
def _variable_of(x: TracedArray, *_: Any, **__: Any) -> Any:
    return x.variable


def _binary(function: Callable[[Any, Any], Any]) -> tuple[Any, Any, Any]:
    """Return an operator of two arrays, the one for a left operand of another type, and ``+=``."""

    def forward(self: TracedArray, other: Any) -> Any:
        return _wrapped(function(self.variable, _operand(other)))

    def reflected(self: TracedArray, other: Any) -> Any:
        return _wrapped(function(pt.as_tensor_variable(_operand(other)), self.variable))

    def in_place(self: TracedArray, other: Any) -> Any:
        # What is 0-d is a number in NumPy, and numbers do not change.
        if self.ndim == 0:
            return forward(self, other)
        self[...] = forward(self, other)
        return self

    return forward, reflected, in_place


def _unary(function: Callable[[Any], Any]) -> Any:
    return lambda self: _wrapped(function(self.variable))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or"):
    _function = getattr(operator, f"__{_name}__")
    for _prefix, _method in zip(("", "r", "i"), _binary(_function), strict=True):
        setattr(TracedArray, f"__{_prefix}{_name}__", _method)
for _name in ("lt", "le", "gt", "ge"):
    setattr(TracedArray, f"__{_name}__", _binary(getattr(operator, _name))[0])
# PyTensor's variables compare by identity, NumPy's arrays by value.
for _name, _function in (("eq", pt.eq), ("ne", pt.neq)):
    setattr(TracedArray, f"__{_name}__", _binary(_function)[0])
for _name in ("neg", "pos", "abs", "invert"):
    setattr(TracedArray, f"__{_name}__", _unary(getattr(operator, _name)))
