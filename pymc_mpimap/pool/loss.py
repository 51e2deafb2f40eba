"""A rank that is lost: MPI says that it died, or it did not answer in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Loss", "Lost"]


@dataclass(frozen=True)
class Loss:
    """A rank that was lost, and how.

    Attributes
    ----------
    rank : int
    how : str
        A predicate: ``"died"``, ``"did not answer within 5 s"``.
    silent : bool
        Whether it may still run: nobody said that it died.
    """

    rank: int
    how: str
    silent: bool = False


class Lost(Exception):  # noqa: N818 # an event between the parts of a pool, no error of the user's
    """Ranks were lost while something was exchanged with them.

    Attributes
    ----------
    losses : list of Loss
    """

    def __init__(self, losses: Sequence[Loss]):
        self.losses = list(losses)
        super().__init__("; ".join(f"rank {loss.rank} {loss.how}" for loss in losses))
