"""The ownership of a program's jobs, and what has been sent to each rank of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from pymc_mpimap.local_data import LocalData
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.dependencies import Dependencies
from pymc_mpimap.pool.module_state import Snapshot
from pymc_mpimap.pool.parcel import Key, keys_of
from pymc_mpimap.pool.portrait import loaded_sources
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import Define, Transfer
from pymc_mpimap.pool.settings import current_settings
from pymc_mpimap.pool.share import Share, gained

__all__ = ["Block", "Deal"]

Block = tuple[int, int]
"""The number of a map, and of a block of it."""

_LEAST_GAIN = 5e3
"""Nanoseconds an evaluation, below which cut points are not moved."""

_MOVING = 2e6
"""Nanoseconds that a move takes, about: definitions, buffers and the data of some jobs."""


class Deal:
    """The shares of all ranks.

    Parameters
    ----------
    number : int
        How the workers call the program.
    program : Program
    n_ranks : int
        This one included.
    staff : tuple of int
        The workers that are there.
    start : Snapshot, optional
        What the user's modules held when the ranks met.

    Attributes
    ----------
    shares : list of list of Share
        For each map, that of each rank. A rank that is not there has no jobs.
    job_runs : list
        For each move of the program, the first and the last job of each rank; None if it is
        broadcast.
    working : list of int
        The workers that have jobs.
    """

    def __init__(
        self,
        number: int,
        program: Program,
        n_ranks: int,
        staff: tuple[int, ...],
        start: Snapshot | None = None,
    ):
        self.number, self.program, self._n_ranks, self._start = number, program, n_ranks, start
        self._told: dict[int, list[Share]] = {}
        self.give(staff)

    def give(self, staff: tuple[int, ...]) -> None:
        """Let these workers do it."""
        self.staff = staff
        # Maps of the same jobs share inputs by job, and so their cut points.
        self._balances = {
            (m.n_jobs, m.grain_size): Balance(
                m.blocks.count, len(staff) + 1, absolute_gain=_LEAST_GAIN
            )
            for m in self.program.maps
        }
        self._cut()

    def _cut(self) -> None:
        """Give each rank its run of each map's blocks."""
        self.shares: list[list[Share]] = []
        for m in self.program.maps:
            own = self._balances[m.n_jobs, m.grain_size].cuts
            # One who is not there has no blocks, between those of its neighbours.
            there = [sum(one < rank for one in self.staff) for rank in range(1, self._n_ranks)]
            cuts = [0, *(own[1 + before] for before in there), own[-1]]
            runs = enumerate(pairwise(cuts))
            shares = [Share(m, low, high, rank) for rank, (low, high) in runs]
            mine = shares[0]
            mine.map = m.owned(mine.first, mine.last)
            self.shares.append(shares)
        by_jobs = {
            (m.n_jobs, m.grain_size): [(share.first, share.last) for share in shares]
            for m, shares in zip(self.program.maps, self.shares, strict=True)
        }
        self.job_runs = [by_jobs[move.jobs] if move.jobs else None for move in self.program.moves]
        self.working = [
            rank
            for rank in self.staff
            if any(shares[rank].low < shares[rank].high for shares in self.shares)
        ]

    def wants_costs(self, busy: Sequence[int], overhead: float) -> bool:
        """Note an evaluation, and say whether `rebalance` is to be told what the blocks cost."""
        there = [busy[0], *(busy[rank] for rank in self.staff)]
        wanted = [balance.wants_costs(there, overhead) for balance in self._balances.values()]
        return any(wanted)

    def rebalance(self, costs: Sequence[np.ndarray]) -> bool:
        """Move the cut points where that pays; say whether they moved.

        Parameters
        ----------
        costs : sequence of array
            For each map, the nanoseconds that each of its blocks took.
        """
        moved = False
        for key, balance in self._balances.items():
            own = [
                cost
                for m, cost in zip(self.program.maps, costs, strict=True)
                if (m.n_jobs, m.grain_size) == key
            ]
            moved |= balance.propose(np.sum(own, axis=0), _MOVING) is not None
        if moved:
            self._cut()
        return moved

    def orders(self, ranks: Iterable[int] | None = None) -> Iterator[tuple[int, Define | Transfer]]:
        """Yield what ranks must be told until they know what is theirs, and take it as told.

        One that begins to work is told the program, with its jobs' data; one that knows it, its
        new jobs and the data that it lacks.

        Parameters
        ----------
        ranks : iterable of int, optional
            Only these; by default all that have jobs, or had some.
        """
        for rank in sorted({*self.working, *self._told}) if ranks is None else ranks:
            mine = [shares[rank] for shares in self.shares]
            before = self._told.get(rank)
            if before is not None and _runs(before) == _runs(mine):
                continue
            yield rank, self._define(mine) if before is None else self._transfer(before, mine)
            self._told[rank] = mine

    def forget(self, rank: int) -> None:
        """Take it that a rank knows nothing: it is lost, and if it comes back, it is another."""
        self._told.pop(rank, None)

    def _define(self, mine: Sequence[Share]) -> Define:
        owned = tuple(share.map.owned(share.first, share.last) for share in mine)
        program = replace(self.program, maps=owned)
        return Define(
            self.number,
            program,
            _runs(mine),
            current_settings(),
            loaded_sources(),
            self._dependencies,
        )

    @cached_property
    def _dependencies(self) -> Dependencies:
        return Dependencies.of(self.program.maps, self._start)

    def _transfer(self, before: Sequence[Share], mine: Sequence[Share]) -> Transfer:
        data = tuple(gained(old, new) for old, new in zip(before, mine, strict=True))
        return Transfer(self.number, _runs(mine), data)

    def jobs_of(self, rank: int) -> str:
        """Say which jobs are a rank's."""
        runs = {
            (share.map.job.name, share.first, share.last - 1)
            for share in (shares[rank] for shares in self.shares)
            if share.first < share.last
        }
        said = (
            f"job {first} of {name}" if first == last else f"the jobs {first} to {last} of {name}"
            for name, first, last in sorted(runs)
        )
        return " and ".join(said) or "no jobs"

    def blocks_of(self, ranks: Iterable[int]) -> set[Block]:
        """Return the blocks of all maps that are the ranks'."""
        return {
            (k, block)
            for rank in ranks
            for k, shares in enumerate(self.shares)
            for block in range(shares[rank].low, shares[rank].high)
        }

    def known(self, rank: int) -> set[Key]:
        """Return by what the data are called that a rank has for this program."""
        return keys_of(
            held
            for share in self._told.get(rank, ())
            for held in share.map.owned(share.first, share.last).data
        )

    @cached_property
    def loads(self) -> bool:
        """True if a rank loads data itself when it gets a job."""
        held = (held for m in self.program.maps for held in m.data)
        return any(isinstance(each, LocalData) for each in held)

    @property
    def undefined(self) -> bool:
        """True while no rank knows the program."""
        return not self._told


def _runs(shares: Sequence[Share]) -> tuple[tuple[int, int], ...]:
    return tuple((share.low, share.high) for share in shares)
