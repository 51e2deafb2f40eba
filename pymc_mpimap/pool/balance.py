"""Which rank works on which blocks."""

from __future__ import annotations

__all__ = ["even_cuts"]


def even_cuts(n_blocks: int, n_ranks: int) -> list[int]:
    """Return the cut points of contiguous runs of blocks, as equal as can be.

    Where they cannot be equal, rank 0, which has the chain to run, is not given more than others.

    Returns
    -------
    list of int, length n_ranks + 1
        Rank r works on the blocks ``cuts[r] <= block < cuts[r + 1]``.

    Examples
    --------
    >>> even_cuts(10, 4)
    [0, 2, 5, 7, 10]
    >>> even_cuts(2, 4)
    [0, 0, 1, 1, 2]
    """
    return [n_blocks * rank // n_ranks for rank in range(n_ranks + 1)]
