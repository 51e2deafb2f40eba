"""Blocks of consecutive jobs, and the fixed order in which their sums are added.

The tree of sums depends on the number of blocks alone. A contiguous run of blocks is covered by
few whole subtrees (at most two a level), so that a rank sends O(log blocks) partial sums, and
adding them up gives the same bits for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Blocks", "Node", "add_up", "subtrees"]

Node = tuple[int, int]
"""A subtree of the tree of sums: the blocks ``low <= block < high``."""


@dataclass(frozen=True)
class Blocks:
    """Jobs grouped in blocks of `grain_size` consecutive jobs; the last may be smaller."""

    n_jobs: int
    grain_size: int

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.n_jobs // self.grain_size)

    def first_job(self, block: int) -> int:
        """Return the first job of a block; for the block after the last, the number of jobs."""
        return min(block * self.grain_size, self.n_jobs)


def _split(low: int, high: int) -> int:
    """Return where a subtree divides: at the largest power of two that leaves a rest."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def subtrees(count: int, low: int, high: int) -> Iterator[Node]:
    """Yield the largest subtrees of a tree of `count` blocks that make up the run ``low..high``.

    Examples
    --------
    >>> list(subtrees(8, 0, 3))
    [(0, 2), (2, 3)]
    >>> list(subtrees(8, 3, 8))
    [(3, 4), (4, 8)]
    """

    def visit(start: int, end: int) -> Iterator[Node]:
        if end <= low or high <= start:
            return
        if low <= start and end <= high:
            yield start, end
            return
        middle = _split(start, end)
        yield from visit(start, middle)
        yield from visit(middle, end)

    if low < high:
        yield from visit(0, count)


def add_up(
    node: Node, parts: Mapping[Node, np.ndarray], leaf: Callable[[int], np.ndarray] | None = None
) -> np.ndarray:
    """Return the sum of a subtree, from the sums of the subtrees in `parts` or from its blocks.

    Parameters
    ----------
    node : tuple of int
        The blocks to sum.
    parts : mapping
        Sums that are known already.
    leaf : callable, optional
        Gives the sum of one block that is not in `parts`.
    """
    if node in parts:
        return parts[node]
    low, high = node
    if high - low == 1:
        if leaf is None:
            raise KeyError(f"no sum of block {low}")
        return leaf(low)
    middle = _split(low, high)
    left, right = add_up((low, middle), parts, leaf), add_up((middle, high), parts, leaf)
    return np.asarray(left + right)
