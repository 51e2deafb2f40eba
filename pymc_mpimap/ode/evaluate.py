"""One solve, called from Python: by SUNDIALS where it is there, or by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pymc_mpimap.ode.methods import SCIPY, in_force
from pymc_mpimap.ode.system import Solve
from pymc_mpimap.reals import real_array

__all__ = ["evaluate"]


def evaluate(solve: Solve, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return the outputs of a solve."""
    solve = solve.by(in_force(solve.system.method))
    kinds = solve.system.types
    # What set_data and compiled functions are given may have a mask.
    label = f"solve_ivp({solve.system.name}): the value of an input"
    arrays = [
        np.asarray(real_array(x, label), dtype=kind.dtype)
        for x, kind in zip(inputs, kinds, strict=True)
    ]
    if solve.system.method in SCIPY:
        from pymc_mpimap.ode.scipy import solve_with_scipy

        return solve_with_scipy(solve, arrays)
    from pymc_mpimap.ode.kernel import compiled

    results = compiled(solve)(*arrays)
    return results if isinstance(results, tuple) else (results,)
