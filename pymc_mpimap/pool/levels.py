"""Small sums of many blocks, added up by the fixed tree level by level.

A level of the tree is one addition of two arrays, however many blocks there are: adding as blocks
are done would be one call of NumPy for each, which takes longer than the addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pymc_mpimap.blocks import Node, split

__all__ = ["Levels"]


class Levels:
    """The tree of sums above a run of blocks.

    Parameters
    ----------
    low, high : int
        The run.
    nodes : sequence of (int, int)
        The subtrees that make it up.
    output : array, shape (n_nodes, ...)
        Where their sums go.

    Attributes
    ----------
    blocks : array, shape (n_blocks, ...)
        Where the blocks' own sums are put.
    """

    def __init__(self, low: int, high: int, nodes: Sequence[Node], output: np.ndarray):
        self._core, self._dtype = output.shape[1:], output.dtype
        self.blocks = self._new(high - low)
        self._additions: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        # For each level, the first whole subtree of 2**level blocks, counted from the tree's
        # first, and the sums of these subtrees.
        self._levels = [(low, self.blocks)]
        while len(below := self._levels[-1][1]) > 1:
            first = self._levels[-1][0]
            start, end = -(-first // 2), (first + len(below)) // 2
            if start >= end:
                break
            left = below[2 * start - first : 2 * end - first : 2]
            right = below[2 * start + 1 - first : 2 * end - first : 2]
            self._levels.append((start, self._new(end - start)))
            self._additions.append((left, right, self._levels[-1][1]))
        # Rows as slices: a scalar's is a vector of one, not a copy.
        self._copies = [(output[row : row + 1], self._sum(*node)) for row, node in enumerate(nodes)]

    def _new(self, n: int) -> np.ndarray:
        return np.empty((n, *self._core), self._dtype)

    def _sum(self, low: int, high: int) -> np.ndarray:
        """Return where a subtree's sum will be found."""
        size = high - low
        if size & (size - 1) == 0:  # It then begins at a multiple of its size.
            start, sums = self._levels[size.bit_length() - 1]
            position = low // size - start
            return sums[position : position + 1]
        middle = split(low, high)
        total = self._new(1)
        self._additions.append((self._sum(low, middle), self._sum(middle, high), total))
        return total

    def add_up(self) -> None:
        """Add up what stands in `blocks`."""
        add = np.add
        for left, right, total in self._additions:
            add(left, right, total)
        for place, total in self._copies:
            place[...] = total
