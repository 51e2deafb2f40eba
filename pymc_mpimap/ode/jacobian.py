"""The Jacobian of a system as a graph of scalars.

A choice, such as ``np.where(y > 0, sqrt(y), 0)`` or ``np.maximum(y, 0) ** 0.75``, keeps a value
from being NaN. Differentiated backwards, each branch gets a cotangent, which is zero for the one
that was not chosen, and zero times its infinite derivative is NaN. So choices are differentiated
forwards: what is chosen by them is their derivative, and what comes after multiplies it only where
it is not zero. Between choices the graph is differentiated backwards, which takes fewer operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytensor
import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.elemwise import Elemwise

from pymc_mpimap.ode.scalarize import ScalarSystem, as_elements, is_constant, scalarize

__all__ = ["jacobian"]

_CANONICALIZE = optdb.query(RewriteDatabaseQuery(include=["canonicalize"]))

type Tangents = dict[int, Any]  # by the number of what is differentiated with respect to


def jacobian(system: ScalarSystem, wrt: Sequence[Variable]) -> dict[tuple[int, int], Variable]:
    """Differentiate the derivatives of a system.

    Parameters
    ----------
    system : ScalarSystem
    wrt : sequence of Variable
        Some of its states and of the elements of its leaves, or the time.

    Returns
    -------
    dict
        At ``(i, j)`` the derivative of ``derivatives[i]`` with respect to ``wrt[j]``, as a graph
        of scalars; entries that are zero everywhere are left out.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> t, y, k = pt.dscalars("t", "y", "k")
    >>> sorted(jacobian(ScalarSystem(t, (y,), ((k,),), (-k * y,), ()), [t, y, k]))
    [(0, 1), (0, 2)]
    """
    entries = {
        (i, j): entry
        for i, row in enumerate(_tangents(system.derivatives, wrt))
        for j, entry in row.items()
    }
    inputs = [system.t, *system.states, *(v for leaf in system.leaves for v in leaf)]
    fgraph = FunctionGraph(inputs, list(entries.values()), clone=True)
    _CANONICALIZE.rewrite(fgraph)
    known = {v: as_elements([x], ()) for v, x in zip(fgraph.inputs, inputs, strict=True)}
    simplified: list[Any] = [e[()] for e in scalarize(fgraph.outputs, known)]
    return {key: e for key, e in zip(entries, simplified, strict=True) if not is_constant(e, 0)}


def _tangents(outputs: Sequence[Variable], wrt: Sequence[Variable]) -> list[Tangents]:
    """Return for each output its derivatives with respect to what it depends on."""
    choices = [node for node in toposort(outputs) if _is_choice(node)]
    if not choices:
        return _gradients(outputs, wrt)
    # What comes after a choice sees a variable in its place.
    places = {node.outputs[0]: node.outputs[0].type() for node in choices}
    pieces: list[Any] = [*outputs, *(v for node in choices for v in node.inputs)]
    pieces = clone_replace(pieces, places)
    variables = [*wrt, *places.values()]
    gradients = iter(zip(pieces, _gradients(pieces, variables), strict=True))
    direct = [next(gradients) for _ in outputs]
    chosen: list[Tangents] = []

    def total(gradient: Tangents) -> Tangents:
        made = {j: g for j, g in gradient.items() if j < len(wrt)}
        for k, tangents in enumerate(chosen):
            if (slope := gradient.get(len(wrt) + k)) is not None:
                for j, tangent in tangents.items():
                    term = _times(slope, tangent)
                    made[j] = made[j] + term if j in made else term
        return made

    for node in choices:
        parts = [next(gradients) for _ in node.inputs]
        values = [value for value, _ in parts]
        tangents = [total(gradient) for _, gradient in parts]
        reached = {j: None for row in tangents for j in row}
        zero = pt.constant(0.0)
        chosen.append(
            {j: _choose(node, values, [row.get(j, zero) for row in tangents]) for j in reached}
        )
    rows = [total(gradient) for _, gradient in direct]
    back = {place: choice for choice, place in places.items()}
    entries: list[Any] = [entry for row in rows for entry in row.values()]
    made = iter(clone_replace(entries, back) if entries else [])
    return [{j: next(made) for j in row} for row in rows]


def _gradients(outputs: Sequence[Variable], wrt: Sequence[Variable]) -> list[Tangents]:
    """Differentiate backwards."""
    rows: list[Tangents] = []
    for output in outputs:
        reached = set(ancestors([output]))
        used = [j for j, v in enumerate(wrt) if v in reached]
        row: Tangents = {}
        if used and output.type.dtype == "float64":
            gradients: Any = pytensor.grad(
                output,
                [wrt[j] for j in used],
                return_disconnected="none",
                disconnected_inputs="ignore",
            )
            row = {j: g for j, g in zip(used, gradients, strict=True) if g is not None}
        rows.append(row)
    return rows


def _is_choice(node: Apply) -> bool:
    kinds = (ps.Switch, ps.Maximum, ps.Minimum, ps.Clip)
    chooses = isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, kinds)
    return chooses and bool(node.outputs[0].type.dtype == "float64")


def _choose(node: Any, values: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Return the derivative of a choice, from its inputs and their derivatives.

    Where two are equal it is the first one's, as in PyTensor.
    """
    first, second, *third = values
    match node.op.scalar_op:
        case ps.Switch():
            return pt.switch(first, *tangents[1:])
        case ps.Maximum():
            return pt.switch(pt.ge(first, second), *tangents)
        case ps.Minimum():
            return pt.switch(pt.le(first, second), *tangents)
    inside = pt.switch(pt.gt(first, third[0]), tangents[2], tangents[0])
    return pt.switch(pt.lt(first, second), tangents[1], inside)


def _times(slope: Any, tangent: Any) -> Any:
    """Return the product; zero where the tangent is, however steep the slope."""
    if isinstance(tangent, Constant):
        return pt.constant(0.0) if is_constant(tangent, 0) else slope * tangent
    node = tangent.owner
    if isinstance(getattr(node.op, "scalar_op", None), ps.Switch):
        condition, *branches = node.inputs
        return pt.switch(condition, *(_times(slope, branch) for branch in branches))
    return pt.switch(pt.eq(tangent, 0.0), 0.0, slope * tangent)
