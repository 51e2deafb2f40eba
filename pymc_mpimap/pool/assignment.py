"""A program as the controller knows it: who works on what, and what was last sent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.map import Map
from pymc_mpimap.pool.assembly import Assembly, assembly
from pymc_mpimap.pool.balance import even_cuts
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import (
    HEADER,
    SMALL,
    Command,
    Define,
    Packing,
    Parts,
    new_buffer,
    same_bytes,
)
from pymc_mpimap.pool.share import Share, output_shapes
from pymc_mpimap.pool.work import Work
from pymc_mpimap.signature import packed_offsets

__all__ = ["Assignment"]


class Line:
    """What goes to one worker for a program, and where its answer is found.

    Parameters
    ----------
    link : Link
    number : int
        What the worker calls the program.
    parts : sequence of array
        The worker's parts of the inputs as they are held here.

    Attributes
    ----------
    answer : array of uint8
        Where the answer is looked for; another one than the link's after it made more room.
    """

    def __init__(self, link: Link, number: int, parts: Sequence[np.ndarray]):
        self.link = link
        self._parts = parts
        self.layout: Parts = tuple((part.dtype.str, part.shape) for part in parts)
        self._packing = Packing(self.layout, len(parts))
        self._buffer = new_buffer(self._packing.nbytes)
        self._header = self._buffer[: 8 * HEADER].view(np.int64)
        self._header[:] = 0
        self._header[0], self._header[2] = Command.EVALUATE, number
        self._flags = self._buffer[8 * HEADER : 8 * HEADER + len(parts)]
        self._messages: dict[tuple[int, ...], tuple[np.ndarray, Any, list[Any]]] = {}
        self._flagged: tuple[int, ...] | None = None
        self.answer = link.answer

    def send(self, evaluation: int, changed: tuple[int, ...]) -> None:
        """Send these of the inputs."""
        message = self._messages.get(changed)
        if message is None:
            message = self._messages[changed] = self._message(changed)
        flags, request, pairs = message
        self._header[1] = evaluation
        if changed != self._flagged:
            self._flagged = None  # if it is interrupted
            self._flags[:] = flags
            self._flagged = changed
        for place, part in pairs:
            place[...] = part
        self.link.start(request)

    def _message(self, changed: tuple[int, ...]) -> tuple[np.ndarray, Any, list[Any]]:
        flags = np.zeros(len(self._parts), dtype=np.uint8)
        flags[list(changed)] = 1
        places, size = self._packing.views(self._buffer, changed)
        pairs = [(place, self._parts[i]) for i, place in zip(changed, places, strict=True)]
        return flags, self.link.message(self._buffer[:size]), pairs


class Assignment:
    """A program, the shares of all ranks, and the inputs as they were last sent.

    Parameters
    ----------
    number : int
        How the workers call it.
    program : Program
    links : sequence of Link
        To the ranks 1, 2, ...

    Attributes
    ----------
    lines : list of Line
        Of the ranks that have something to do, set by `prepare`.
    works : list of Work
        This rank's own part of each map.
    assemblies : list of callable
        What gives each map's outputs when all answers are there.
    """

    def __init__(self, number: int, program: Program, links: Sequence[Link]):
        self.number, self.program, self._links = number, program, links
        ranks = len(links) + 1
        cuts = [even_cuts(m.blocks.count, ranks) for m in program.maps]
        self.shares = [
            [Share(m, own[rank], own[rank + 1], rank) for rank in range(ranks)]
            for m, own in zip(program.maps, cuts, strict=True)
        ]
        for shares in self.shares:
            own = shares[0]
            own.map = own.map.owned(own.first, own.last)
        by_jobs = {
            (m.n_jobs, m.grain_size): [(share.first, share.last) for share in shares]
            for m, shares in zip(program.maps, self.shares, strict=True)
        }
        self.positions = [move.position for move in program.moves]
        self._job_runs = [by_jobs[move.jobs] if move.jobs else None for move in program.moves]
        self.working = [
            link
            for link in links
            if any(shares[link.rank].low < shares[link.rank].high for shares in self.shares)
        ]
        self.defined = False
        self.in_force = False
        self._shapes: list[tuple[int, ...]] = []
        self._held: list[np.ndarray] = []
        self._contents: list[bytes | None] = []
        self._large: list[int] = []
        self._offsets: dict[int, np.ndarray] = {}
        self.lines: list[Line] = []
        self.works: list[Work] = []
        self.assemblies: list[Assembly] = []

    def prepare(self, values: Sequence[np.ndarray]) -> None:
        """Hold these inputs, and prepare all that depends on their shapes.

        Raises
        ------
        JobError
            If this rank's local data cannot be loaded.
        """
        self.in_force = False
        self._shapes = [value.shape for value in values]
        self._held = [np.array(value, order="C") for value in values]
        self._contents = [v.tobytes() if v.nbytes <= SMALL else None for v in self._held]
        self._large = [i for i, content in enumerate(self._contents) if content is None]
        self._offsets = {
            move.shapes: packed_offsets(self._held[move.shapes])
            for move in self.program.moves
            if move.shapes is not None
        }
        self.lines = [
            Line(link, self.number, [self.part(i, link.rank, v) for i, v in enumerate(self._held)])
            for link in self.working
        ]
        self.works = [
            Work(shares[0], [self.part(i, 0, self._held[i]) for i in used])
            for shares, used in zip(self.shares, self.program.uses, strict=True)
        ]

    def part(self, i: int, rank: int, value: np.ndarray) -> np.ndarray:
        """Return a rank's part of an input."""
        runs, move = self._job_runs[i], self.program.moves[i]
        if runs is None:
            return value
        first, last = runs[rank]
        if move.shapes is not None:
            offsets = self._offsets[move.shapes]
            first, last = offsets[first], offsets[last]
        return value[first:last]

    def fits(self, values: Sequence[np.ndarray]) -> bool:
        """Whether all that was prepared still holds for these inputs."""
        return (
            self.in_force
            and [value.shape for value in values] == self._shapes
            and all(same_bytes(values[i], self._held[i]) for i in self.program.shape_moves)
        )

    def send(self, evaluation: int, values: Sequence[np.ndarray]) -> None:
        """Send each working rank what changed since the last time, and hold it."""
        # Until all is sent, nothing is known of what the workers have: an error forgets it.
        self.in_force = False
        small = []
        for i, content in enumerate(self._contents):
            if content is not None and (now := values[i].tobytes()) != content:
                self._contents[i] = now
                self._held[i][...] = values[i]
                small.append(i)
        changed = tuple(small)
        if not self._large:
            for line in self.lines:
                line.send(evaluation, changed)
        else:
            large = self._take_large(values)
            for line in self.lines:
                line.send(evaluation, tuple(sorted((*changed, *large[line.link.rank]))))
        self.in_force = True

    def _take_large(self, values: Sequence[np.ndarray]) -> list[list[int]]:
        """Hold the large inputs that changed; return for each rank which of them concern it."""
        changed: list[list[int]] = [[] for _ in range(len(self._links) + 1)]
        for i in self._large:
            everyone = range(len(changed))
            runs = [[rank] for rank in everyone] if self._job_runs[i] else [[*everyone]]
            for ranks in runs:
                held, now = (self.part(i, ranks[0], v[i]) for v in (self._held, values))
                if not same_bytes(now, held):
                    held[...] = now
                    for rank in ranks:
                        changed[rank].append(i)
        return changed

    def send_all(self, evaluation: int) -> None:
        """Send each working rank its part of all inputs, as held."""
        everything = tuple(range(len(self._held)))
        for line in self.lines:
            line.send(evaluation, everything)
        self.in_force = True

    def expect(self) -> None:
        """Find the answers where the links will receive them; nothing may be under way."""
        results: list[list[Sequence[np.ndarray]]] = [[work.outputs] for work in self.works]
        working = [0, *(line.link.rank for line in self.lines)]
        for line in self.lines:
            packing = self._packing(line.link.rank)
            line.link.reserve(packing.nbytes)
            line.answer = line.link.answer
            views, _ = packing.views(line.answer, tuple(range(len(packing.parts))))
            rest = iter(views)
            for column, m in zip(results, self.program.maps, strict=True):
                column.append([next(rest) for _ in m.job.outputs])
        self.assemblies = [
            assembly(m, [shares[rank] for rank in working], column)
            for m, shares, column in zip(self.program.maps, self.shares, results, strict=True)
        ]

    def _packing(self, rank: int) -> Packing:
        """Return how a worker's answer is packed."""
        parts: list[tuple[str, tuple[int, ...]]] = []
        for shares, used in zip(self.shares, self.program.uses, strict=True):
            share = shares[rank]
            m = share.map
            supplied = (self.part(i, rank, self._held[i]) for i in used)
            inputs = [
                next(supplied) if held is None else _shape_data(m, i, share)
                for i, held in enumerate(m.data)
            ]
            sizes = output_shapes(m, inputs, share.first, share.last, len(share.subtrees))
            parts += [
                (slot.type.dtype, shape) for slot, shape in zip(m.job.outputs, sizes, strict=True)
            ]
        return Packing(parts)

    def define(self) -> list[tuple[Link, Define]]:
        """Return what each working rank needs to know: the program and the data of its jobs."""
        orders = []
        for link in self.working:
            mine = [shares[link.rank] for shares in self.shares]
            owned = tuple(share.map.owned(share.first, share.last) for share in mine)
            runs = tuple((share.low, share.high) for share in mine)
            program = replace(self.program, maps=owned)
            orders.append((link, Define(self.number, program, runs, current_settings())))
        return orders


def current_settings() -> dict[str, Any]:
    """Return PyTensor's configuration where it changes compiled code, for the workers."""
    names = ("mode", "linker", "optimizer", "floatX", "cast_policy", "numba__fastmath")
    settings = {name: getattr(config, name) for name in names}
    if "jax" in sys.modules:
        settings["jax_enable_x64"] = sys.modules["jax"].config.jax_enable_x64
    return settings


def _shape_data(m: Map, i: int, share: Share) -> Any:
    """Return held data only where the shapes of outputs follow from them."""
    if any(i in (slot.shapes, slot.like) for slot in m.job.outputs):
        held = m.data[i]
        return None if held is None else held.block(share.first, share.last)
    return None
