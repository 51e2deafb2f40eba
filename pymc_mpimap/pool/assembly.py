"""Putting the ranks' results together: concatenated in job order, or summed by the fixed tree.

Those of all ranks give a map's outputs. Those of a few consecutive ones give what one rank with all
of their blocks would have: per-job outputs, and the sums of its subtrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from pymc_mpimap.blocks import Node, additions
from pymc_mpimap.map import Map
from pymc_mpimap.pool.share import Share

__all__ = ["Assembly", "Gathering", "assemblies", "gatherings"]

Assembly = Callable[[], np.ndarray]
"""Gives one output, as a new array, from what the shares gave."""

Gathering = Callable[[], object]
"""Puts one output where it belongs, from what the shares gave."""


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
    steps, (first,) = _steps([(0, m.blocks.count)], shares, parts)
    shape = parts[0].shape[1:]
    if not steps:
        return first.reshape(shape).copy
    *before, (left, right) = steps

    def sum_up() -> np.ndarray:
        for a, b in before:
            np.add(a, b, a)
        total: np.ndarray = np.add(left, right)
        return total.reshape(shape)

    return sum_up


def gatherings(
    whole: Share,
    shares: Sequence[Share],
    results: Sequence[Sequence[np.ndarray]],
    places: Sequence[np.ndarray],
) -> list[Gathering]:
    """Return the functions that give a run of blocks' outputs.

    Parameters
    ----------
    whole : Share
        The run.
    shares : sequence of Share
        In job order; together they are all of the run.
    results : sequence of sequence of array
        For each share its outputs, see `Work.outputs`: read anew by each call, and the sums among
        them used up.
    places : sequence of array
        Where the run's outputs go, of the same form.
    """
    outputs: list[Gathering] = []
    for k, (slot, place) in enumerate(zip(whole.map.job.outputs, places, strict=True)):
        parts = [result[k] for result in results]
        if slot.per_job:
            outputs.append(partial(np.concatenate, parts, out=place))
        else:
            outputs.append(_gathered(whole.subtrees, shares, parts, place))
    return outputs


def _gathered(
    nodes: Sequence[Node], shares: Sequence[Share], parts: Sequence[np.ndarray], place: np.ndarray
) -> Gathering:
    steps, sums = _steps(nodes, shares, parts)
    pairs = [(place[row : row + 1], each) for row, each in enumerate(sums)]

    def gather() -> None:
        for left, right in steps:
            np.add(left, right, left)
        for own, each in pairs:
            own[...] = each

    return gather


def _steps(
    nodes: Sequence[Node], shares: Sequence[Share], parts: Sequence[np.ndarray]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Say what is added to what so that the shares' sums become those of larger subtrees.

    Returns
    -------
    list of (array, array)
        What grows, and what is added to it.
    list of array
        Where the sum of each node is then found.
    """
    known = [node for share in shares for node in share.subtrees]
    # Rows as slices: a scalar's is a vector of one, not a copy.
    rows = [part[row : row + 1] for part in parts for row in range(len(part))]
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    stack: list[np.ndarray] = []
    for low, high in nodes:
        mine = [node for node in known if low <= node[0] and node[1] <= high]
        for count in additions((low, high), mine):
            stack.append(rows.pop(0))
            for _ in range(count):
                right = stack.pop()
                steps.append((stack[-1], right))
    return steps, stack
