"""A map: one job over a number of jobs, with the data it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from pytensor.graph.type import Type

from pymc_mpimap.blocks import Blocks
from pymc_mpimap.data import JobData
from pymc_mpimap.job.base import Job
from pymc_mpimap.signature import boundary_type

__all__ = ["Map", "OnError", "default_grain"]

MOST_BLOCKS, FEWEST_BLOCKS = 64, 16
"""More blocks balance the load better, fewer cost less: how many a cheap map is divided into."""

SMALL_BLOCK = 20_000
"""Operations of one value, about a nanosecond each, so that with derivatives and all that is done
for each block, 2 to 3 us, that is no more than a tenth of its time."""

OnError = Literal["raise", "reject"]


def default_grain(job: Job, n_jobs: int) -> int:
    """Return how many consecutive jobs make a block, from the problem alone.

    Parameters
    ----------
    job : Job
    n_jobs : int
    """
    if not job.cheap:
        return 1
    blocks = MOST_BLOCKS
    if job.operations is not None:
        blocks = min(max(job.operations * n_jobs // SMALL_BLOCK, FEWEST_BLOCKS), MOST_BLOCKS)
    return max(1, -(-n_jobs // blocks))


@dataclass(frozen=True)
class Map:
    """One job over ``n_jobs`` jobs.

    Attributes
    ----------
    job : Job
    n_jobs : int
    data : tuple of JobData or None
        For each input of the job, the data held for it, or None where the graph supplies it.
    grain_size : int
        Jobs a block. Blocks depend on the problem alone, never on the ranks, so that sums have
        the same bits everywhere.
    on_error : {"raise", "reject"}
        What happens when a job raises.
    origin : bytes
        Which call of `map_rect` it comes from: where a job is rejected, its value and derivatives
        are, and nothing else. No part of the map's value.
    """

    job: Job
    n_jobs: int
    data: tuple[JobData | None, ...]
    grain_size: int
    on_error: OnError = "raise"
    origin: bytes = field(default=b"", compare=False)

    @cached_property
    def _hash(self) -> int:
        return hash((self.job, self.n_jobs, self.data, self.grain_size, self.on_error))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, object]:
        fields = ("job", "n_jobs", "data", "grain_size", "on_error", "origin")
        return {name: self.__dict__[name] for name in fields}

    @property
    def from_graph(self) -> tuple[int, ...]:
        """The job's inputs that the graph supplies."""
        return tuple(i for i, held in enumerate(self.data) if held is None)

    @property
    def blocks(self) -> Blocks:
        """The blocks that the jobs are grouped in."""
        return Blocks(self.n_jobs, self.grain_size)

    def input_types(self) -> list[Type]:
        """Return the types of the inputs that the graph supplies."""
        return [boundary_type(self.job.inputs[i], self.n_jobs) for i in self.from_graph]

    def output_types(self) -> list[Type]:
        """Return the types of the outputs."""
        return [boundary_type(slot, self.n_jobs) for slot in self.job.outputs]

    def owned(self, first: int, last: int) -> Map:
        """Return the map with no more data than the owner of these jobs needs."""
        data = tuple(None if held is None else held.owned(first, last) for held in self.data)
        return replace(self, data=data)

    def moved(self, first: int, last: int, gained: Sequence[Sequence[JobData | None]]) -> Map:
        """Return the map for the owner of other jobs than before, see `JobData.moved`.

        Parameters
        ----------
        gained : sequence of sequence of JobData
            The `data` of the map as the owners of jobs that are new to this one need it.
        """
        columns = zip(*gained, strict=True) if gained else [()] * len(self.data)
        data = tuple(
            None if held is None else held.moved(first, last, [d for d in column if d is not None])
            for held, column in zip(self.data, columns, strict=True)
        )
        return replace(self, data=data)

    def running(self, job: Job) -> Map:
        """Return the map of a job with the same inputs and outputs in the place of its own."""
        return self if job is self.job else replace(self, job=job)

    def derived(self, job: Job) -> Map:
        """Return the map of a pullback or pushforward of the job: more inputs, same data."""
        extra = len(job.inputs) - len(self.data)
        return replace(self, job=job, data=(*self.data, *[None] * extra))

    def keep(self, outputs: Sequence[int]) -> Map:
        """Return the map that gives only these outputs."""
        return replace(self, job=self.job.keep(outputs))

    def pruned(self) -> tuple[Map, list[int]]:
        """Drop the inputs that no output needs.

        Returns
        -------
        Map
        list of int
            The positions, among `from_graph`, of the inputs that stay.
        """
        used = self.job.used_inputs()
        if len(used) == len(self.job.inputs):
            return self, list(range(len(self.from_graph)))
        new = {old: position for position, old in enumerate(used)}
        positions = [new.get(i, -1) for i in range(len(self.job.inputs))]
        slots = tuple(self.job.inputs[i].moved(new) for i in used)
        pruned = replace(
            self,
            job=self.job.reroute(positions, slots),
            data=tuple(self.data[i] for i in used),
        )
        return pruned, [k for k, i in enumerate(self.from_graph) if i in new]
