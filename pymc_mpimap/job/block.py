"""Traced jobs, made into graphs of blocks of consecutive jobs.

Where every input and output has one shape for all jobs, the graph is vectorized: a block is one
pass of array operations. Elsewhere (ragged values, Ops that PyTensor cannot vectorize) a compiled
loop runs over the jobs of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import applys_between
from pytensor.raise_op import Assert, CheckAndRaise
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.type import TensorType

from pymc_mpimap.job.base import Kernel, Thunk
from pymc_mpimap.job.linker import compile_for
from pymc_mpimap.job.lowering import BlockGraph, lower
from pymc_mpimap.signature import Slot
from pymc_mpimap.vectormath.rewriting import has_rows, is_vectorizing

if TYPE_CHECKING:
    from pymc_mpimap.job.graph import GraphJob

__all__ = ["block_graph", "compile_block"]

# Blockwise runs any Op in a loop of its own. For these the loop is good code in every backend.
_VECTORIZED_CORES = (
    "Dot",
    "Matmul",
    "Solve",
    "SolveTriangular",
    "CholeskySolve",
    "Cholesky",
    "SolveIVP",
    "Reshape",
    "IncSubtensor",
)


def block_graph(job: GraphJob, mode: Mode) -> BlockGraph:
    """Return the graph of a block of a traced job's jobs, rewritten in one of the modes of jobs.

    Its inputs are the number of jobs and the job's own, as a block has them.
    """
    n = pt.lscalar("n")
    blocks = [_block_type(slot)(name=f"input_{i}") for i, slot in enumerate(job.inputs)]
    outputs = _vectorized(job, n, blocks, mode)
    if outputs is None:
        outputs = _looped(job, n, blocks)
    return lower([n, *blocks], outputs, mode)


def compile_block(block: BlockGraph) -> Kernel:
    """Return the kernel of a traced job; see `pymc_mpimap.job.base.Kernel`."""
    function = block.link()

    # The compiled code itself, where there is one piece of it: a third of a call's time is saved.
    code = getattr(function.vm, "jit_fn", function)

    def kernel(_first: int, n: int, inputs: Sequence[Any]) -> Thunk:
        arguments = [np.asarray(n), *inputs]
        compile_for(code, arguments)
        return lambda: code(*arguments)

    return kernel


def _block_type(slot: Slot) -> Any:
    """Return the type of an input for a block of any number of jobs."""
    if not slot.per_job:
        return slot.type
    if slot.ragged:
        return TensorType(slot.type.dtype, shape=(None,))
    return TensorType(slot.type.dtype, shape=(None, *slot.type.shape))


def _vectorized(job: GraphJob, n: Any, blocks: Sequence[Any], mode: Mode) -> list[Any] | None:
    """Return the block's outputs as array operations, or None where that is not possible."""
    if any(slot.ragged for slot in (*job.inputs, *job.outputs)):
        return None
    cores = [slot.type() for slot in job.inputs]
    results = job.graph.bind(cores)
    if is_vectorizing(mode):
        blocks = [
            has_rows(block, n) if slot.per_job else block
            for block, slot in zip(blocks, job.inputs, strict=True)
        ]
    try:
        vectorized = vectorize_graph(results, dict(zip(cores, blocks, strict=True)))
    except (NotImplementedError, ValueError, TypeError):
        return None
    for node in applys_between(blocks, vectorized):
        if isinstance(node.op, Blockwise):
            if type(node.op.core_op).__name__ not in _VECTORIZED_CORES:
                return None
        elif not _elementary(node.op):
            return None
    outputs: list[Any] = []
    result: Any
    for result, slot in zip(vectorized, job.outputs, strict=True):
        if result.ndim == slot.type.ndim:  # No per-job input reaches it: the same for each job.
            stack = pt.broadcast_to(result, (n, *result.shape))
        else:
            stack = result
        outputs.append(stack if slot.per_job else _summed(stack, slot))
    return outputs


def _elementary(op: Any) -> bool:
    """Return whether vectorizing this Op gives array operations and no hidden loop."""
    return type(op).__module__.startswith("pytensor.tensor") or isinstance(op, CheckAndRaise)


def _summed(stack: Any, slot: Slot) -> Any:
    return stack.sum(axis=0, dtype=slot.type.dtype, acc_dtype=slot.type.dtype)


def _offsets(shapes: Any) -> Any:
    """Return where each job's values begin in a packed vector, and where the last ends."""
    sizes = pt.prod(shapes, axis=1, dtype="int64")
    return pt.concatenate([pt.zeros(1, dtype="int64"), pt.cumsum(sizes)])


def _looped(job: GraphJob, n: Any, blocks: Sequence[Any]) -> list[Any]:
    """Return the block's outputs as a loop over its jobs."""
    ragged_slots = {slot.shapes for slot in (*job.inputs, *job.outputs) if slot.shapes is not None}
    offsets: dict[int | None, Any] = {k: _offsets(blocks[k]) for k in sorted(ragged_slots)}
    ragged_outputs = [k for k, slot in enumerate(job.outputs) if slot.ragged]
    buffers = [
        pt.zeros(offsets[job.outputs[k].shapes][-1], dtype=job.outputs[k].type.dtype)
        for k in ragged_outputs
    ]
    n_buffers, n_blocks = len(buffers), len(blocks)

    def step(j: Any, *rest: Any) -> list[Any]:
        state = list(rest[:n_buffers])
        values: Any = list(rest[n_buffers : n_buffers + n_blocks])
        starts: dict[int | None, Any] = dict(
            zip(offsets, rest[n_buffers + n_blocks :], strict=True)
        )

        cores = []
        for slot, value in zip(job.inputs, values, strict=True):
            if not slot.per_job:
                cores.append(value)
            elif slot.shapes is None:
                cores.append(pt.specify_shape(value[j], slot.type.shape))
            else:
                where = starts[slot.shapes]
                shape = values[slot.shapes][j]
                core = value[where[j] : where[j + 1]].reshape(shape, ndim=slot.type.ndim)
                cores.append(pt.specify_shape(core, slot.type.shape))
        results = job.graph.bind(
            [slot.type.filter_variable(core) for slot, core in zip(job.inputs, cores, strict=True)]
        )
        for k, position in enumerate(ragged_outputs):
            result: Any = results[position]
            where = starts[job.outputs[position].shapes]
            shape = values[job.outputs[position].shapes][j]
            checked: Any = Assert(
                f"{job.label} returned another length than was derived for this job"
            )(result, pt.eq(pt.stack(list(result.shape)), shape).all())
            state[k] = pt.set_subtensor(state[k][where[j] : where[j + 1]], checked.ravel())
        stacked = [r for r, slot in zip(results, job.outputs, strict=True) if not slot.ragged]
        return [*state, *stacked]

    n_stacked = len(job.outputs) - n_buffers
    traces = pytensor.scan(
        step,
        sequences=[pt.arange(n)],
        outputs_info=[*buffers, *[None] * n_stacked],
        non_sequences=[*blocks, *offsets.values()],
        strict=True,
        return_list=True,
        return_updates=False,
    )
    packed = iter(trace[-1] for trace in traces[:n_buffers])
    stacked = iter(traces[n_buffers:])
    outputs = []
    for slot in job.outputs:
        if slot.ragged:
            outputs.append(next(packed))
        else:
            stack = next(stacked)
            outputs.append(stack if slot.per_job else _summed(stack, slot))
    return outputs
