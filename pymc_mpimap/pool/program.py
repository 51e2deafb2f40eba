"""Programs, which a pool evaluates in one round trip: some maps, and the inputs of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pymc_mpimap.errors import InputError
from pymc_mpimap.map import Map
from pymc_mpimap.signature import Slot, packed_offsets

__all__ = ["Move", "Program"]


@dataclass(frozen=True)
class Move:
    """One input on its way to the ranks.

    Attributes
    ----------
    position : int
        Which input of the program.
    per_job : bool
        Scattered by job, or broadcast.
    jobs : tuple of int, optional
        For a per-job input: the number of jobs and the grain size, which give the cut points.
    shapes : int, optional
        For a ragged one: the index of the move that holds the jobs' shapes, or None if they
        are the same for every job.
    """

    position: int
    per_job: bool
    jobs: tuple[int, int] | None = None
    shapes: int | None = None


@dataclass(frozen=True)
class Program:
    """Maps that are evaluated together.

    Attributes
    ----------
    maps : tuple of Map
    routes : tuple of tuple of int
        For each map, which inputs of the program its graph inputs are.
    """

    maps: tuple[Map, ...]
    routes: tuple[tuple[int, ...], ...]

    @cached_property
    def _hash(self) -> int:
        return hash((self.maps, self.routes))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {"maps": self.maps, "routes": self.routes}

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """The inputs to be moved: each once, however many maps take it."""
        return self._moves_and_uses[0]

    @cached_property
    def uses(self) -> tuple[tuple[int, ...], ...]:
        """For each map, the moves that bring its graph inputs."""
        return self._moves_and_uses[1]

    @cached_property
    def shape_moves(self) -> tuple[int, ...]:
        """The moves that hold shapes: of ragged inputs, or of what the jobs will return."""
        holding = {move.shapes for move in self.moves if move.shapes is not None}
        for m, used in zip(self.maps, self.uses, strict=True):
            by_input = dict(zip(m.from_graph, used, strict=True))
            holding |= {by_input[s.shapes] for s in m.job.outputs if s.shapes in by_input}
        return tuple(sorted(holding))

    @cached_property
    def values(self) -> tuple[tuple[int, int, int], ...]:
        """The outputs that are values of jobs, not derivatives: position, map, output of its job.

        They are those for which -inf stands in where a job is rejected.
        """
        outputs = [
            (k, i, slot) for k, m in enumerate(self.maps) for i, slot in enumerate(m.job.outputs)
        ]
        return tuple(
            (position, k, i)
            for position, (k, i, slot) in enumerate(outputs)
            if slot.per_job and slot.on_failure == -np.inf
        )

    @cached_property
    def _moves_and_uses(self) -> tuple[tuple[Move, ...], tuple[tuple[int, ...], ...]]:
        moves: list[Move] = []

        def index(move: Move) -> int:
            if move not in moves:
                moves.append(move)
            return moves.index(move)

        uses = []
        for m, route in zip(self.maps, self.routes, strict=True):
            positions = dict(zip(m.from_graph, route, strict=True))
            jobs = (m.n_jobs, m.grain_size)
            used = []
            for i, position in positions.items():
                slot = m.job.inputs[i]
                shapes = None
                if slot.shapes is not None:
                    if slot.shapes not in positions:
                        raise AssertionError(f"{slot.name} is supplied, but its shapes are held")
                    shapes = index(Move(positions[slot.shapes], True, jobs))
                used.append(
                    index(
                        Move(position, True, jobs, shapes)
                        if slot.per_job
                        else Move(position, False)
                    )
                )
            uses.append(tuple(used))
        return tuple(moves), tuple(uses)

    def check(self, inputs: Sequence[np.ndarray]) -> None:
        """Refuse inputs whose sizes do not fit, before anything is evaluated or sent.

        Raises
        ------
        InputError
        """
        for m, route in zip(self.maps, self.routes, strict=True):
            values = dict(zip(m.from_graph, route, strict=True))
            for i, position in values.items():
                slot, value = m.job.inputs[i], inputs[position]
                if slot.shapes is None:
                    self._check_shape(m, slot, value.shape)
                    continue
                shapes = inputs[values[slot.shapes]]
                if len(shapes) == m.n_jobs and packed_offsets(shapes)[-1] != len(value):
                    raise InputError(
                        f"map_rect({m.job.name}): {slot.name} has {len(value)} values for all "
                        f"jobs together, but the jobs' shapes add up to "
                        f"{packed_offsets(shapes)[-1]}"
                    )

    @staticmethod
    def _check_shape(m: Map, slot: Slot, shape: tuple[int, ...]) -> None:
        rows = (m.n_jobs,) * slot.per_job
        if shape[: len(rows)] != rows:
            raise InputError(
                f"map_rect({m.job.name}): {slot.name} has {shape[0]} rows now, but was built for "
                f"{m.n_jobs} jobs. The number of jobs is fixed when map_rect is called; build the "
                "model again for another number"
            )
        own, expected = shape[len(rows) :], slot.type.shape
        if any(b is not None and a != b for a, b in zip(own, expected, strict=True)):
            raise InputError(
                f"map_rect({m.job.name}): {slot.name} has shape {own}"
                f"{' in each job' if rows else ''} now, but was built for {expected}"
            )
