"""Kernels that evaluate one job after the other in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pymc_mpimap.job.base import Job, Kernel, Thunk
from pymc_mpimap.signature import Slot, packed_offsets

__all__ = ["one_by_one"]


def one_by_one(job: Job, one: Callable[[int, Sequence[Any]], Sequence[np.ndarray]]) -> Kernel:
    """Return the kernel whose thunks call `one` for each job of a block.

    Parameters
    ----------
    one : callable
        ``one(j, values)`` returns the outputs of job j from its inputs.
    """

    def kernel(first: int, n: int, inputs: Sequence[Any]) -> Thunk:
        takers = [
            _taker(slot, value, inputs) for slot, value in zip(job.inputs, inputs, strict=True)
        ]

        def thunk() -> list[Any]:
            rows = [one(first + j, [take(j) for take in takers]) for j in range(n)]
            columns = zip(*rows, strict=True)
            return [
                _joined(job, slot, column, first, inputs)
                for slot, column in zip(job.outputs, columns, strict=True)
            ]

        return thunk

    return kernel


def _taker(slot: Slot, value: Any, inputs: Sequence[Any]) -> Callable[[int], Any]:
    """Return the function that takes one job's part out of a block's input."""
    if not slot.per_job:
        return lambda _: value
    if slot.shapes is None:
        return lambda j: value[j]
    shapes = np.asarray(inputs[slot.shapes])
    offsets = packed_offsets(shapes)
    return lambda j: value[offsets[j] : offsets[j + 1]].reshape(shapes[j])


def _joined(
    job: Job, slot: Slot, column: Sequence[np.ndarray], first: int, inputs: Sequence[Any]
) -> np.ndarray:
    """Return the block's output from those of its jobs."""
    if slot.shapes is not None:
        for j, (value, shape) in enumerate(zip(column, inputs[slot.shapes], strict=True)):
            if value.shape != tuple(shape):
                raise ValueError(
                    f"{job.name} returned shape {value.shape} for job {first + j}, where "
                    f"{tuple(int(size) for size in shape)} was expected from its length"
                )
        return np.concatenate([value.ravel() for value in column])
    if slot.per_job:
        return np.array(column)
    # In job order, so that the sum has the same bits wherever the block runs.
    total = np.array(column[0])
    for value in column[1:]:
        total += value
    return total
