"""The tree by which many ranks are reached: rank 0 speaks to few, and these to others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from pymc_mpimap.pool.protocol import Branch

__all__ = ["branches", "divided", "pays"]

FLAT = 16
"""Up to so many working ranks, this one included, rank 0 speaks to each itself: each message costs
it less than the way through another rank would cost all."""

FAN_OUT = 4
"""The most ranks that one rank speaks to."""


def pays(ranks: int) -> bool:
    """Return whether this many working ranks, rank 0 included, are reached sooner by a tree."""
    return ranks > FLAT


def divided(ranks: Sequence[int]) -> list[tuple[int, ...]]:
    """Divide ranks among the children of one: consecutive ones each, the largest parts first.

    Messages are sent in this order, and the largest part has the longest way.

    Examples
    --------
    >>> divided([1, 2, 3, 4, 5, 6])
    [(1, 2), (3, 4), (5,), (6,)]
    """
    parts = min(FAN_OUT, len(ranks))
    if not parts:
        return []
    size, larger = divmod(len(ranks), parts)
    cuts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [tuple(ranks[start:end]) for start, end in pairwise(cuts)]


def branches(
    ranks: Sequence[int],
    describe: Callable[[tuple[int, ...], int, tuple[Branch, ...]], Branch],
    parent: int = 0,
) -> tuple[Branch, ...]:
    """Return the branches below a rank.

    Parameters
    ----------
    ranks : sequence of int
        All ranks below it, in order.
    describe : callable
        Makes a branch of its ranks, its parent and its children.
    parent : int
    """
    return tuple(
        describe(part, parent, branches(part[1:], describe, part[0])) for part in divided(ranks)
    )


def all_of(trees: Sequence[Branch]) -> dict[int, Branch]:
    """Return each rank's branch."""
    found: dict[int, Branch] = {}
    for branch in trees:
        found[branch.ranks[0]] = branch
        found |= all_of(branch.children)
    return found
