"""A rewrite: values of jobs that are only summed are summed where the jobs are.

The sum is then an output of the map like the derivatives by shared parameters: added up by the
fixed tree on each rank, so that no value of a single job travels. The Op is rewritten before any
pool is chosen, and so the order of the sum is the same on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, override

from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.scalar.basic import Mul, Neg, TrueDiv
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Sum
from pytensor.tensor.shape import Reshape

from pymc_mpimap.rewriting import MapRewriter, Placed, make_node, map_nodes, placed_maps

__all__ = ["SumJobs"]

_Step = Callable[[Any], Any]
"""Operations that are the same done to all values or to their sum."""

_Total = tuple[Variable, tuple[_Step, ...]]
"""The result that is made of an output's sum, and the steps to it."""


class SumJobs(MapRewriter):
    """Let outputs that are only summed, or scaled and summed, be sums over the jobs."""

    @override
    def apply(self, fgraph: Any) -> None:
        # From the last to the first: a node's inputs are then still what they were.
        for node in reversed(map_nodes(fgraph)):
            totals = {v: found for v in node.outputs if (found := _totals(fgraph, v))}
            parts, summed = [], set[Variable]()
            for part in placed_maps(node):
                outputs = [
                    k
                    for k, (v, slot) in enumerate(
                        zip(part.replaces, part.map.job.outputs, strict=True)
                    )
                    if v in totals and slot.per_job
                ]
                summed |= {part.replaces[k] for k in outputs}
                parts.append(_summed(part, outputs) if outputs else part)
            if not summed:
                continue
            replacements = []
            for old, new in make_node(parts):
                if old not in summed:
                    replacements.append((old, new))
                    continue
                for total, steps in totals[old]:
                    value: Any = new
                    for step in steps:
                        value = step(value)
                    replacements.append((total, value))
            fgraph.replace_all_validate(replacements, reason="map_rect_sum")


def _summed(part: Placed, outputs: list[int]) -> Placed:
    """Return a map with these outputs summed; inputs that held their shapes are not needed."""
    job = part.map.job.summed(outputs)
    pruned, positions = replace(part.map, job=job).pruned()
    return Placed(pruned, tuple(part.inputs[k] for k in positions), part.replaces)


def _totals(fgraph: Any, variable: Variable) -> list[_Total] | None:
    """Return all that is made of a variable, or None where it is used otherwise than summed."""
    totals: list[_Total] = []
    for client, position in fgraph.clients[variable]:
        if _sums_all(client):
            totals.append((client.outputs[0], ()))
            continue
        step = _scaling(client, position)
        scaled = None if step is None else _totals(fgraph, client.outputs[0])
        if step is None or scaled is None:
            return None
        totals += [(total, (step, *steps)) for total, steps in scaled]
    return totals


def _sums_all(node: Apply) -> bool:
    op = node.op
    return (
        isinstance(op, Sum)
        and (op.axis is None or len(op.axis) == node.inputs[0].type.ndim)
        and {node.inputs[0].type.dtype, op.dtype, op.acc_dtype} == {"float64"}
    )


def _scaling(node: Apply, position: int) -> _Step | None:
    """Return what a node does to each of the values alike; None if it does anything else."""
    if isinstance(node.op, Reshape) and position == 0:
        return lambda total: total
    if not isinstance(node.op, Elemwise):
        return None
    others: list[Any] = [v for i, v in enumerate(node.inputs) if i != position]
    if not all(all(v.type.broadcastable) for v in others):
        return None
    kind = node.op.scalar_op
    if isinstance(kind, Neg | Mul) or (isinstance(kind, TrueDiv) and position == 0):
        factors = [v.dimshuffle([]) for v in others]
        return lambda total: node.op(total, *factors)
    return None


# After cotangents have been told from values (48.0), and before unused outputs are dropped and maps
# merged (48.1): what is summed is merged with the derivatives.
optdb.register("map_rect_sum", SumJobs(), "fast_run", "fast_compile", position=48.05)
