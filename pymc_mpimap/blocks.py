"""Blocks of consecutive jobs, and the fixed order in which their sums are added.

The tree of sums depends on the number of blocks alone. A contiguous run of blocks is covered by
few whole subtrees (at most two a level), so that a rank sends O(log blocks) partial sums, and
adding them up gives the same bits for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Blocks", "Node", "additions", "split", "subtrees"]

Node = tuple[int, int]
"""A subtree of the tree of sums: the blocks ``low <= block < high``."""


@dataclass(frozen=True)
class Blocks:
    """Jobs grouped in blocks of `grain_size` consecutive jobs; the last may be smaller."""

    n_jobs: int
    grain_size: int

    @property
    def count(self) -> int:
        """The number of blocks."""
        return -(-self.n_jobs // self.grain_size)

    def first_job(self, block: int) -> int:
        """Return the first job of a block; for the block after the last, the number of jobs."""
        return min(block * self.grain_size, self.n_jobs)


def split(low: int, high: int) -> int:
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
        middle = split(start, end)
        yield from visit(start, middle)
        yield from visit(middle, end)

    if low < high:
        yield from visit(0, count)


def additions(node: Node, parts: Sequence[Node]) -> list[int]:
    """Say how the sums of some subtrees add up to that of the subtree that they make.

    Parameters
    ----------
    node : tuple of int
        The blocks to sum.
    parts : sequence of tuple of int
        Its subtrees whose sums are known, in order.

    Returns
    -------
    list of int
        For a stack on which the sums are put one after the other: how often, after each of them,
        the uppermost is taken off and added to the one below. In the end one sum is left.

    Examples
    --------
    >>> additions((0, 4), [(0, 1), (1, 2), (2, 3), (3, 4)])
    [0, 1, 0, 2]
    >>> additions((0, 3), [(0, 2), (2, 3)])
    [0, 1]
    """
    counts: list[int] = []

    def visit(low: int, high: int) -> None:
        if parts[len(counts)] == (low, high):
            counts.append(0)
            return
        middle = split(low, high)
        visit(low, middle)
        visit(middle, high)
        counts[-1] += 1

    visit(*node)
    return counts
