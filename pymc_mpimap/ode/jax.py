"""SolveIVP under the JAX linker: a host callback to the compiled solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from pytensor.graph.basic import Apply
from pytensor.link.jax.dispatch import jax_funcify

from pymc_mpimap.ode.evaluate import evaluate
from pymc_mpimap.ode.op import SolveIVP

__all__: list[str] = []


@jax_funcify.register(SolveIVP)
def _funcify(op: SolveIVP, node: Apply, **_: Any) -> Callable[..., Any]:
    dtypes = [variable.type.dtype for variable in node.inputs]

    def solve_ivp(*inputs: Any) -> Any:
        shapes = op.output_shapes([np.shape(value) for value in inputs])
        results = tuple(jax.ShapeDtypeStruct(shape, "float64") for shape in shapes)

        def host(*values: Any) -> Any:
            arrays = [np.asarray(v, dtype=d) for v, d in zip(values, dtypes, strict=True)]
            return tuple(evaluate(op.solve, arrays))

        outputs = jax.pure_callback(host, results, *inputs, vmap_method="sequential")
        return outputs[0] if len(outputs) == 1 else outputs

    return solve_ivp
