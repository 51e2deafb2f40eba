"""The Jacobian of a system as a graph of scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytensor
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.graph.traversal import ancestors

from pymc_mpimap.ode.scalarize import ScalarSystem, as_elements, is_constant, scalarize

__all__ = ["jacobian"]

_CANONICALIZE = optdb.query(RewriteDatabaseQuery(include=["canonicalize"]))


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
    entries: dict[tuple[int, int], Any] = {}
    for i, derivative in enumerate(system.derivatives):
        reached = set(ancestors([derivative]))
        used = [j for j, v in enumerate(wrt) if v in reached]
        if used:
            inputs = [wrt[j] for j in used]
            gradients: Any = pytensor.grad(
                derivative, inputs, return_disconnected="none", disconnected_inputs="ignore"
            )
            entries |= {(i, j): g for j, g in zip(used, gradients, strict=True) if g is not None}
    inputs = [system.t, *system.states, *(v for leaf in system.leaves for v in leaf)]
    fgraph = FunctionGraph(inputs, list(entries.values()), clone=True)
    _CANONICALIZE.rewrite(fgraph)
    known = {v: as_elements([x], ()) for v, x in zip(fgraph.inputs, inputs, strict=True)}
    simplified: list[Any] = [e[()] for e in scalarize(fgraph.outputs, known)]
    return {key: e for key, e in zip(entries, simplified, strict=True) if not is_constant(e, 0)}
