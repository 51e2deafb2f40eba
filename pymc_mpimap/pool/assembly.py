"""Putting the ranks' results together: concatenated in job order, or summed by the fixed tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pymc_mpimap.blocks import additions
from pymc_mpimap.map import Map
from pymc_mpimap.pool.share import Share

__all__ = ["Assembly", "assemblies"]

Assembly = Callable[[], np.ndarray]
"""Gives one output, as a new array, from what the shares gave."""


def assemblies(
    m: Map, shares: Sequence[Share], results: Sequence[Sequence[np.ndarray]]
) -> list[Assembly]:
    """Return the functions that give a map's outputs.

    Parameters
    ----------
    m : Map
    shares : sequence of Share
        In job order; together they are all of the map.
    results : sequence of sequence of array
        For each share its outputs, see `Work.outputs`: read anew by each call, and the sums among
        them used up.
    """
    outputs: list[Assembly] = []
    for k, slot in enumerate(m.job.outputs):
        parts = [result[k] for result in results]
        if slot.per_job:
            outputs.append(_joined(parts))
        elif m.n_jobs == 0:
            outputs.append(_zeros(parts[0].shape[1:], parts[0].dtype))
        else:
            outputs.append(_summed(m, shares, parts))
    return outputs


def _joined(parts: list[np.ndarray]) -> Assembly:
    if len(parts) == 1:
        return parts[0].copy
    return lambda: np.concatenate(parts)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> Assembly:
    return lambda: np.zeros(shape, dtype)


def _summed(m: Map, shares: Sequence[Share], parts: Sequence[np.ndarray]) -> Assembly:
    nodes = [node for share in shares for node in share.subtrees]
    # Rows as slices: a scalar's is a vector of one, not a copy.
    sums = [part[row : row + 1] for part in parts for row in range(len(part))]
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    stack: list[np.ndarray] = []
    for part, count in zip(sums, additions((0, m.blocks.count), nodes), strict=True):
        stack.append(part)
        for _ in range(count):
            right = stack.pop()
            steps.append((stack[-1], right))
    shape = parts[0].shape[1:]
    if not steps:
        return stack[0].reshape(shape).copy
    *before, (left, right) = steps

    def sum_up() -> np.ndarray:
        for a, b in before:
            np.add(a, b, a)
        total: np.ndarray = np.add(left, right)
        return total.reshape(shape)

    return sum_up
