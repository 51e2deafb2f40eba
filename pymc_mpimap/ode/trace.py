"""Call a user's right-hand side once with unknown values, and keep what it computes."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import scipy
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.random.op import RNGConsumerOp
from pytensor.tensor.type import TensorType

from pymc_mpimap.errors import InputError
from pymc_mpimap.ode.argument_order import another_order
from pymc_mpimap.ode.scalarize import (
    Elements,
    NotScalarError,
    ScalarSystem,
    as_elements,
    scalarize,
)
from pymc_mpimap.ode.state_names import StateNames
from pymc_mpimap.ode.traced_array import NotTraceableError, TracedArray, plain
from pymc_mpimap.structure import NOTHING, Structure
from pymc_mpimap.trace import closure, refuse_constants
from pymc_mpimap.version import PACKAGE

__all__ = ["ScalarSystem", "trace_system"]

Rhs = Callable[..., Any]


def trace_system(
    rhs: Rhs,
    n_states: int,
    leaves: Sequence[tuple[str, TensorType]],
    structure: Structure,
    name: str,
) -> ScalarSystem:
    """Trace a right-hand side into a graph of scalars.

    Parameters
    ----------
    rhs : callable
        ``rhs(t, y, params)``, or ``rhs(t, y)`` if there are no parameters: dy/dt as a list, tuple
        or vector of `n_states` entries, written with NumPy's or PyTensor's functions.
    n_states : int
        How many states there are.
    leaves : sequence of (str, TensorType)
        For each tensor in ``params`` what the user calls it, and its type of static shape.
    structure : Structure
        How ``params`` is made of them.
    name : str
        How to call `rhs` in errors.

    Raises
    ------
    InputError
        If the function cannot be traced; it names the line of the user's file.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_mpimap.structure import flatten
    >>> leaves, structure = flatten({"k": pt.dscalar().type}, "p")
    >>> system = trace_system(lambda t, y, p: -p["k"] * y, 1, leaves, structure, "decay")
    >>> [k], [y] = system.leaves[0], system.states
    >>> float(system.derivatives[0].eval({k: 2.0, y: 3.0}))
    -6.0
    """
    if (order := another_order(rhs)) is not None:
        raise InputError(
            f"{name} {order}, but is called as {name}(t, y, params): the time first, then the "
            f"states, then the parameters{_defined_at(rhs)}"
        )
    t = pt.dscalar("t")
    states = _scalars("y", (n_states,))
    y = TensorType("float64", (n_states,))("y")
    known: dict[Variable, Elements] = {t: as_elements([t], ()), y: states}
    inputs: list[Variable] = [t, y]
    parts: list[Elements] = []
    for label, type_ in leaves:
        shape = _static_shape(label, type_, name)
        inputs.append(TensorType("float64", shape)(label))
        parts.append(_scalars(label, shape))
        known[inputs[-1]] = parts[-1]
    arguments = [TracedArray(t), TracedArray(y)]
    if structure != NOTHING:
        arguments.append(structure.rebuild([TracedArray(v) for v in inputs[2:]]))
    newest = _serial(pt.dscalar())
    try:
        with StateNames(y, _is_users) as found:
            returned = rhs(*arguments)
        output = _as_vector(returned, n_states)
    except Exception as error:
        raise InputError(_explain(error, rhs, name)) from error
    _refuse_randomness(output, newest, rhs, name)
    refuse_constants(name, output)
    closure = _outer_variables(inputs, output)
    for v in closure:
        label = str(v.name or v)
        shape = _static_shape(label, v.type, name)
        parts.append(_scalars(label, shape))
        known[v] = _in_own_type(parts[-1], v.type)
    try:
        [derivatives] = scalarize([output], known)
    except NotScalarError as error:
        raise InputError(_explain_op(error, rhs, name)) from error
    return ScalarSystem(
        t,
        tuple(states),
        tuple(tuple(part.flat) for part in parts),
        tuple(_checked(derivatives, n_states, rhs, name)),
        tuple(closure),
        found.names,
    )


def _serial(variable: Variable) -> int:
    """Return the number that PyTensor gave to a variable: later ones have larger numbers."""
    return int(str(variable.auto_name).removeprefix("auto_"))


def _scalars(label: str, shape: tuple[int, ...]) -> Elements:
    made = np.empty(shape, object)
    for index in np.ndindex(shape):
        made[index] = pt.dscalar(f"{label}[{', '.join(map(str, index))}]" if index else label)
    return made


def _static_shape(label: str, type_: Any, name: str) -> tuple[int, ...]:
    if not isinstance(type_, TensorType) or type_.dtype.startswith("complex"):
        raise InputError(f"{name} uses {label}, a {type_}; it can use real tensors only")
    if None in type_.shape:
        raise InputError(
            f"{name} uses {label}, whose shape is not known before it is computed: {type_}. Each "
            f"element becomes a variable of its own, so give it one: pt.specify_shape({label}, "
            f"({', '.join('...' if n is None else str(n) for n in type_.shape)},))"
        )
    return tuple(int(n) for n in type_.shape if n is not None)


def _in_own_type(scalars: Elements, type_: TensorType) -> Elements:
    """Return float64 variables as what the graph was built for: an integer can be no float."""
    made = np.empty(scalars.shape, object)
    for index in np.ndindex(scalars.shape):
        made[index] = pt.cast(scalars[index], type_.dtype if type_.dtype[0] != "f" else "float64")
    return made


def _as_vector(returned: Any, n_states: int) -> Any:
    """Return what the function returned as one vector."""
    expected = f"dy/dt as a list or vector of {n_states}"
    if returned is None:
        raise _ReturnedError(f"returned None, not {expected}: a return is missing")
    value = list(returned) if isinstance(returned, (list, tuple)) else plain(returned)
    if not isinstance(value, list):
        try:
            vector = pt.as_tensor_variable(value)
        except Exception as error:
            raise _ReturnedError(
                f"returned {type(returned).__name__}, not {expected}: {error}".rstrip(".")
            ) from error
        if vector.type.ndim > 1:
            raise _ReturnedError(
                f"returned an array of {vector.type.ndim} dimensions, not {expected}; "
                "np.ravel makes a vector of it"
            )
        return pt.atleast_1d(vector)
    elements = [pt.as_tensor_variable(plain(v)) for v in value]
    for i, element in enumerate(elements):
        if element.type.ndim:
            raise _ReturnedError(
                f"returned a list whose entry {i} has the shape {element.type.shape}, not "
                f"{expected} numbers; np.concatenate joins vectors"
            )
    return pt.stack(elements) if elements else pt.zeros(0)


class _ReturnedError(Exception):
    """Raised where a function returned something other than derivatives."""


def _checked(derivatives: Elements, n_states: int, rhs: Rhs, name: str) -> list[Variable]:
    if derivatives.size != n_states:
        raise InputError(
            f"{name} returned {derivatives.size} derivatives, and there are {n_states} states: "
            f"return one for each of y[0] to y[{n_states - 1}], in this order{_defined_at(rhs)}"
        )
    made: list[Variable] = []
    for i, v in enumerate(derivatives):
        if v.type.dtype.startswith("complex"):
            raise InputError(f"{name} returned a complex dy[{i}]/dt{_defined_at(rhs)}")
        if isinstance(v, Constant) and not np.isfinite(v.data):
            raise InputError(
                f"{name} returned {v.data} for dy[{i}]/dt, whatever the state{_defined_at(rhs)}"
            )
        made.append(
            pt.constant(v.data.astype("float64"))
            if isinstance(v, Constant)
            else pt.cast(v, "float64")
        )
    return made


def _outer_variables(inputs: Sequence[Variable], output: Variable) -> list[Variable]:
    """Return the variables of the enclosing model that the graph starts from."""
    outer: dict[Variable, None] = {}
    for found in closure(inputs, output):
        v = found
        # The same parameter times a state and times all states is still one parameter.
        while v.owner is not None and isinstance(v.owner.op, DimShuffle):
            v = v.owner.inputs[0]
        outer.setdefault(v)
    return list(outer)


def _refuse_randomness(output: Variable, newest: int, rhs: Rhs, name: str) -> None:
    for v in ancestors([output]):
        if v.owner and isinstance(v.owner.op, RNGConsumerOp) and _serial(v) > newest:
            raise InputError(
                f"{name} draws the random variable {v.name or v.owner.op}"
                f"{_made_at([v]) or _defined_at(rhs)}\nA solver calls the function many times and "
                "needs the same answer for the same values. Make the random variable outside of "
                "the function and use it there"
            )


# Frames of these are not the user's own.
_LIBRARIES = (
    f"{PACKAGE}{os.sep}",
    *(f"{Path(str(m.__file__)).parent}{os.sep}" for m in (np, pytensor, scipy)),
    functools.__file__,
)


def _is_users(file: str) -> bool:
    return not file.startswith((*_LIBRARIES, "<__array_function__", "<frozen"))


def _quoted(file: str, line: int) -> str:
    source = linecache.getline(file, line).strip()
    return f"{file}, line {line}:\n    {source}" if source else f"{file}, line {line}"


def _line_of(error: BaseException) -> tuple[str, int] | None:
    """Return file and line of the innermost frame that is the user's."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame.f_code.co_filename)
    ]
    return frames[-1] if frames else None


def _definition(rhs: Rhs) -> tuple[str, int] | None:
    """Return file and line of a function, of a partial's function, or of an object's call."""
    function = inspect.unwrap(getattr(rhs, "func", rhs))
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return None
    line = code.co_firstlineno
    while linecache.getline(code.co_filename, line).lstrip().startswith("@"):
        line += 1
    return code.co_filename, line


def _defined_at(rhs: Rhs) -> str:
    place = _definition(rhs)
    return f". It is defined in {_quoted(*place)}" if place else ""


def _made_at(variables: Sequence[Variable]) -> str:
    """Say where the last of the variables with a record of it was made."""
    frames = (
        frame
        for v in reversed(variables)
        for stack in reversed(getattr(v.tag, "trace", None) or [])
        for frame in reversed(stack)
    )
    place = next(((f[0], f[1]) for f in frames if _is_users(f[0])), None)
    return f". It is made in {_quoted(*place)}" if place else ""


def _explain_op(error: NotScalarError, rhs: Rhs, name: str) -> str:
    v = error.variables[0]
    what = f"{v.owner.op} ({type(v.owner.op).__name__})" if v.owner is not None else str(v)
    return (
        f"{name} uses {what}, which {error}{_made_at(error.variables) or _defined_at(rhs)}\n"
        "A right-hand side is unrolled into operations on scalars. Write it with arithmetic, "
        "elementwise functions, sums, products of matrices and indices that are numbers"
    )


def _explain(error: Exception, rhs: Rhs, name: str) -> str:
    """Say which line of the user's stands in the way, what happened there, and how to mend it."""
    if isinstance(error, _ReturnedError):
        return f"{name} {error}{_defined_at(rhs)}"
    place = _line_of(error) or _definition(rhs)
    source = linecache.getline(*place) if place else ""
    kind = _kind(error)
    what = str(error) if isinstance(error, NotTraceableError) else ""
    if kind == "assignment" and not what:
        what = "puts values that are not known yet into a NumPy array of numbers"
    what = what or f"raised {type(error).__name__}: {error}".rstrip(".")
    where = _quoted(*place) if place else "its code"
    return (
        f"{name} cannot be traced: it is called once, with values that are not known yet, and "
        f"{where}\n{what}. {_mend(kind, source)}"
    )


def _kind(error: BaseException | None) -> str:
    """Return what went wrong; NumPy and PyTensor say so in words only."""
    text = str(error)
    if "setting an array element with a sequence" in text:
        return "objects" if "inhomogeneous" in text else "assignment"
    if isinstance(error, NotTraceableError):
        return error.kind
    if "boolean operations" in text or "astype(bool)" in text:
        return "branch"
    if "must be real number" in text or "to Python float" in text:
        return "number"
    if "loop of ufunc does not support" in text or "TensorType: object" in text:
        return "objects"
    return "other"


def _mend(kind: str, source: str) -> str:
    for pattern, mend in _MENDS.get(kind, _MENDS["other"]).items():
        if found := re.search(pattern, source):
            return found.expand(mend)
    raise AssertionError(kind)


# How to mend each kind of trouble, by the first pattern that is found in the source line.
_MENDS = {
    "branch": {
        r"(?<![.\w])(max|min)\(": r"Use np.\1imum(a, b) in place of \1(a, b)",
        r"np\.(\w+)\(": r"Give np.\1 arrays made by np.stack([...]), not by np.array([...])",
        r"\bwhile\b": "Give the loop a fixed number of turns: for i in range(10), say",
        r"": "Compute both and choose by np.where(condition, a, b) or pt.switch(condition, a, b) "
        "in place of if; np.logical_and and np.logical_or in place of and, or",
    },
    "number": {
        r"\bmath\.(\w+)": r"Use np.\1 in place of math.\1",
        r"": "Leave float() and int() out; use np.exp and the like in place of math.exp",
    },
    "assignment": {
        r"": "Return a list [dy0, dy1, ...], or begin with dy = np.zeros_like(y)",
    },
    "function": {r"": "Write it with other functions of NumPy, or with those of pytensor.tensor"},
    "objects": {r"": "Join values by np.stack([...]) or pt.stack([...]), not by np.array([...])"},
    "shape": {r"": "Choose by np.where, not by an index, so that the shape is always the same"},
    "other": {
        r"": "It is called as rhs(t, y, params), and must work for y a float array of the shape of "
        "y0, with the parameters as given"
    },
}
