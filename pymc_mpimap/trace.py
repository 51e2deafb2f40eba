"""Trace a user's function once into a job's graph, its closure lifted out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors, applys_between
from pytensor.tensor.random.op import RNGConsumerOp
from pytensor.tensor.type import TensorType

from pymc_mpimap.data import JobData, SharedData
from pymc_mpimap.errors import InputError
from pymc_mpimap.reals import real_array, real_tensor

__all__ = ["Trace", "closure", "refuse_constants", "trace"]

# Smaller constants stay in the graph, where the compiler can use their values; larger ones
# become data, so that compiled code can be cached and they are sent apart from it.
LARGEST_INLINE_CONSTANT = 512


@dataclass(frozen=True)
class Trace:
    """A traced function.

    Attributes
    ----------
    output : Variable
        What one job returns, as a graph of `inputs` and `lifted`.
    inputs : tuple of Variable
        What one job is given.
    lifted : tuple of (Variable, Variable or JobData)
        What the function closes over: the variable in the job's graph, and where its value
        comes from, a variable of the enclosing model or a large constant.
    """

    output: Any
    inputs: tuple[Variable, ...]
    lifted: tuple[tuple[Variable, Variable | JobData], ...]


def trace(
    f: Callable[..., Any],
    name: str,
    inputs: Sequence[Variable],
    positional: Sequence[Any],
    keywords: dict[str, Any],
) -> Trace:
    """Call the function once with symbolic inputs.

    Raises
    ------
    InputError
        If it returns no scalar or vector, or draws random numbers.
    """
    newest = int(pt.scalar().auto_name.removeprefix("auto_"))
    returned = f(*positional, **keywords)
    output = _as_output(name, returned)
    outer = closure(inputs, output)
    _refuse_randomness(name, inputs, output, outer, newest)
    lifted: list[tuple[Variable, Variable | JobData]] = []
    replacements: dict[Variable, Variable] = {}
    for variable in outer:
        inner = variable.type()
        inner.name = variable.name
        replacements[variable] = inner
        lifted.append((inner, variable))
    refuse_constants(name, output)
    for constant in _large_constants(output):
        inner = TensorType(constant.type.dtype, constant.data.shape)()
        replacements[constant] = inner
        lifted.append((inner, SharedData(constant.data)))
    if replacements:
        output = clone_replace(output, replacements)
    return Trace(output, tuple(inputs), tuple(lifted))


def _as_output(name: str, returned: Any) -> Any:
    if isinstance(returned, (tuple, dict)) or returned is None:
        raise InputError(
            f"{name} returned {type(returned).__name__}; a traced job returns one scalar or "
            "vector. Mark f with @numeric_job if it returns (value, d_theta, d_job)"
        )
    try:
        output = real_tensor(returned, "it")
    except Exception as error:
        raise InputError(
            f"{name} returned {type(returned).__name__}, which is no tensor: {error}"
        ) from error
    if output.type.ndim > 1:
        raise InputError(
            f"{name} returned a tensor of {output.type.ndim} dimensions; a job returns a scalar or "
            "a vector. Return .sum() for a log-likelihood, or .ravel() for all values"
        )
    return output


def closure(inputs: Sequence[Variable], output: Variable) -> list[Variable]:
    """Return the outermost variables that the graph takes from outside, in order of use."""
    given = set(inputs)
    inside = set(applys_between(list(inputs), [output])) if given else set()
    # A node is the job's own if an input of the job reaches it, or if it has constants alone.
    own: dict[Variable, bool] = {}
    constant: dict[Variable, bool] = {}

    for variable in _dependencies_first(output):
        node = variable.owner
        if node is None or variable in given:
            own[variable] = variable in given
            constant[variable] = isinstance(variable, Constant)
        else:
            own[variable] = node in inside and any(own[i] for i in node.inputs)
            constant[variable] = all(constant[i] for i in node.inputs)

    outer: dict[Variable, None] = {}

    def visit(variable: Variable, seen: set[Variable]) -> None:
        stack = [variable]
        while stack:
            v = stack.pop()
            if v in seen or v in given or constant[v]:
                continue
            seen.add(v)
            if own[v]:
                stack.extend(reversed(v.owner.inputs))
            else:
                outer.setdefault(v)

    visit(output, set())
    return list(outer)


def _dependencies_first(output: Variable) -> list[Variable]:
    """Return all ancestors, each after those it depends on."""
    order: list[Variable] = []
    done: set[Variable] = set()
    stack = [(output, False)]
    while stack:
        variable, expanded = stack.pop()
        if variable in done:
            continue
        if expanded or variable.owner is None:
            done.add(variable)
            order.append(variable)
            continue
        stack.append((variable, True))
        stack.extend((i, False) for i in variable.owner.inputs)
    return order


def _refuse_randomness(
    name: str,
    inputs: Sequence[Variable],
    output: Variable,
    outer: Sequence[Variable],
    newest: int,
) -> None:
    """Refuse random variables of the job's own: made during the call, or depending on the job."""
    borders = {*inputs, *outer}
    for variable in ancestors([output]):
        node = variable.owner
        if node is None or not isinstance(node.op, RNGConsumerOp):
            continue
        made_inside = int(str(variable.auto_name).removeprefix("auto_")) > newest
        reached = variable not in borders and _reaches(variable, inputs)
        if made_inside or reached:
            raise InputError(
                f"{name} draws the random variable {variable.name or node.op} inside the job. "
                "Jobs must give the same value for the same inputs: draws would differ with the "
                "number of ranks. Make the random variable outside of the function and use it "
                "there (a closure), or pass it as theta or jobs"
            )


def refuse_constants(name: str, output: Variable) -> None:
    """Refuse arrays of the closure that mean more than their numbers: PyTensor takes some."""
    for v in ancestors([output]):
        if isinstance(v, Constant) and isinstance(v.type, TensorType):
            real = v.data.real  # Complex constants are the user's own.
            real_array(real, f"an array that {name} uses")


def _reaches(variable: Variable, inputs: Sequence[Variable]) -> bool:
    return any(i in set(ancestors([variable])) for i in inputs)


def _large_constants(output: Variable) -> list[Any]:
    return [
        v
        for v in ancestors([output])
        if isinstance(v, Constant)
        and isinstance(v.type, TensorType)
        and np.size(v.data) > LARGEST_INLINE_CONSTANT
    ]
