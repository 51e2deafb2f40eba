"""Solves under PyTensor's numba linker: part of the compiled graph."""

from __future__ import annotations

import warnings
from typing import Any

from pytensor.graph.basic import Apply
from pytensor.link.numba.dispatch.basic import (
    generate_fallback_impl,
    numba_njit,
    register_funcify_and_cache_key,
)

from pymc_mpimap.ode.each import SolveEach
from pymc_mpimap.ode.methods import SCIPY, in_force
from pymc_mpimap.ode.op import SolveIVP

__all__: list[str] = []


@register_funcify_and_cache_key(SolveIVP)
def _funcify(op: SolveIVP, node: Apply, **options: Any) -> tuple[Any, str | None]:
    solve = op.solve.by(in_force(op.system.method))
    if solve.system.method in SCIPY:
        with warnings.catch_warnings():
            # That SciPy is called from Python is what was asked for.
            warnings.filterwarnings("ignore", "Numba will use object mode", UserWarning)
            return generate_fallback_impl(op, node, **options), None
    from pymc_mpimap.ode.kernel import solve_kernel  # Not before it is needed: it compiles.

    function, key = solve_kernel(solve)
    return numba_njit(function), key


@register_funcify_and_cache_key(SolveEach)
def _funcify_each(op: SolveEach, **_: Any) -> tuple[Any, str | None]:
    from pymc_mpimap.ode.kernel import solve_kernel

    core = op.core
    function, key = solve_kernel(core.solve.by(in_force(core.system.method)), op.per_job)
    return numba_njit(function), key
