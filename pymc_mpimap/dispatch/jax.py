"""MapRectOp under the JAX linker: a host callback to the pool in force.

Samplers that derive by JAX itself, NumPyro's and BlackJAX's, get the derivatives that PyTensor has:
the pullback of the maps, which are maps again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from pytensor.compile.mode import JAX
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.null_type import NullType
from pytensor.link.jax.dispatch import jax_funcify

from pymc_mpimap.errors import DerivativeError, InputError
from pymc_mpimap.op import MapRectOp, evaluate_op
from pymc_mpimap.samplers.jax import stand_in
from pymc_mpimap.signature import core_shape

__all__: list[str] = []


@jax_funcify.register(MapRectOp)
def _funcify(op: MapRectOp, node: Apply, **_: Any) -> Callable[..., Any]:
    input_types = [variable.type for variable in node.inputs]

    def map_rect(*inputs: Any) -> Any:
        shapes = _shapes(op, node, [tuple(value.shape) for value in inputs])
        results = tuple(
            jax.ShapeDtypeStruct(shape, output.type.dtype)
            for shape, output in zip(shapes, node.outputs, strict=True)
        )

        def host(*values: Any) -> Any:
            arrays = [
                np.asarray(value, dtype=kind.dtype)
                for value, kind in zip(values, input_types, strict=True)
            ]
            try:
                return tuple(evaluate_op(op, arrays))
            except BaseException as error:
                raise stand_in(error) from error

        outputs = jax.pure_callback(host, results, *inputs, vmap_method="sequential")
        return outputs[0] if len(outputs) == 1 else outputs

    def forward(*primals: Any) -> Any:
        values = tuple(primal.value for primal in primals)
        # Which derivatives are asked for travels as the structure of a tree: None or ().
        asked = tuple(() if primal.perturbed else None for primal in primals)
        return map_rect(*values), (values, asked)

    def backward(kept: Any, cotangents: Any) -> Any:
        values, asked = kept
        given = cotangents if isinstance(cotangents, tuple) else (cotangents,)
        return _pull_back(op, node, values, [i for i, a in enumerate(asked) if a == ()], given)

    differentiable = jax.custom_vjp(map_rect)
    differentiable.defvjp(forward, backward, symbolic_zeros=True)
    return differentiable


def _pull_back(
    op: MapRectOp, node: Apply, values: Sequence[Any], asked: Sequence[int], cotangents: Any
) -> tuple[Any, ...]:
    """Return the cotangents of the inputs that were asked for; None for others, and for zeros."""
    inputs = [variable.type() for variable in node.inputs]
    outputs = op.make_node(*inputs).outputs
    given = {
        k: cotangent
        for k, cotangent in enumerate(cotangents)
        if not isinstance(cotangent, jax.custom_derivatives.SymbolicZero)
    }
    variables: dict[int, Any] = {k: outputs[k].type() for k in given}
    pulled = op.pullback(
        inputs, outputs, [variables.get(k, DisconnectedType()()) for k in range(len(outputs))]
    )
    for i in asked:
        if isinstance(pulled[i].type, NullType):
            raise DerivativeError(pulled[i].type.why_null)
    wanted = [i for i in asked if not isinstance(pulled[i].type, DisconnectedType)]
    graph = FunctionGraph([*inputs, *variables.values()], [pulled[i] for i in wanted])
    JAX.optimizer.rewrite(graph)
    results = dict(zip(wanted, jax_funcify(graph)(*values, *given.values()), strict=True))
    return tuple(results.get(i) for i in range(len(inputs)))


def _shapes(
    op: MapRectOp, node: Apply, input_shapes: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Return the outputs' shapes, which JAX must know when it compiles."""
    shapes: list[tuple[int, ...]] = []
    outputs = iter(node.outputs)
    for m, route in zip(op.maps, op.routes, strict=True):
        by_input = dict(zip(m.from_graph, route, strict=True))
        cores: list[tuple[int, ...] | None] = [None] * len(m.job.inputs)
        for i, position in by_input.items():
            cores[i] = input_shapes[position][m.job.inputs[i].per_job :]
        for slot in m.job.outputs:
            kind = next(outputs).type
            if slot.like in by_input and slot.ragged:
                shapes.append(input_shapes[by_input[slot.like]])
            elif slot.ragged:
                assert slot.shapes is not None
                if (held := m.data[slot.shapes]) is None:
                    jobs_shapes: Any = getattr(node.inputs[by_input[slot.shapes]], "data", None)
                else:
                    jobs_shapes = held.block(0, m.n_jobs)
                if jobs_shapes is None and None in kind.shape:
                    raise InputError(
                        f"map_rect({m.job.name}): JAX must know all shapes when it compiles, but "
                        "the lengths of these outputs depend on inputs. Use the numba or C backend"
                    )
                shapes.append((int(np.prod(jobs_shapes, axis=1).sum()),))
            else:
                shapes.append((m.n_jobs,) * slot.per_job + core_shape(slot, cores))
    return shapes
