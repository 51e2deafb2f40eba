"""A program as the controller knows it: who works on what, and what was last sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pymc_mpimap.pool import tree
from pymc_mpimap.pool.assembly import Assembly, assemblies
from pymc_mpimap.pool.commons import Commons
from pymc_mpimap.pool.deal import Deal
from pymc_mpimap.pool.line import Line
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.module_state import Snapshot
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import (
    SMALL,
    Branch,
    Layout,
    Packing,
    Parts,
    same_bytes,
)
from pymc_mpimap.pool.share import Share, answer_parts
from pymc_mpimap.pool.work import Work
from pymc_mpimap.signature import packed_offsets

__all__ = ["Assignment"]


class Assignment:
    """A program, the shares of all ranks, and the inputs as they were last sent.

    Parameters
    ----------
    number : int
        How the workers call it.
    program : Program
    links : sequence of Link
        To the ranks 1, 2, ...
    staff : tuple of int
        Those of them that are there.

    Attributes
    ----------
    direct : list of Line
        To the ranks that have something to do, set by `prepare`.
    branches : tuple of Branch
        Those that evaluations go to, where they go down a tree; the lines are to their heads.
    lines : list of Line
        What evaluations are sent by.
    asked : list of int
        The ranks that they go to.
    height : int
        How many levels of ranks are below those, at most.
    warm : bool
        Whether all ranks have evaluated it, on inputs of these shapes, and so compiled it and
        loaded their data.
    spent : list of (tuple of int, array)
        Where the ranks of branches say how long they were busy.
    works : list of Work
        This rank's own part of each map.
    assemblies : list of callable
        What gives each output, when all answers have arrived.
    look_at, ask_at : int
        When the balance is looked at, or costs are asked for, at the earliest.
    """

    def __init__(
        self,
        number: int,
        program: Program,
        links: Sequence[Link],
        staff: tuple[int, ...],
        start: Snapshot | None,
    ):
        self.number, self.program, self._links = number, program, links
        self._shape_moves = program.shape_moves
        self.positions = [move.position for move in program.moves]
        self.deal = Deal(number, program, len(links) + 1, staff, start)
        self.look_at = self.ask_at = 0
        self.in_force = False
        self._shapes: list[tuple[int, ...]] = []
        self._held: list[np.ndarray] = []
        self._commons: Commons | None = None
        self._contents: list[bytes | None] = []
        self._large: list[int] = []
        self._offsets: dict[int, np.ndarray] = {}
        self.direct: list[Line] = []
        self.branches: tuple[Branch, ...] = ()
        self.lines: list[Line] = []
        self.heads: list[Link] = []
        self.asked: list[int] = []
        self.height, self.warm = 0, False
        self.spent: list[tuple[tuple[int, ...], np.ndarray]] = []
        self.works: list[Work] = []
        self.assemblies: list[Assembly] = []

    @property
    def working(self) -> list[Link]:
        """The links to the ranks that have jobs."""
        return [self._links[rank - 1] for rank in self.deal.working]

    def prepare(self, values: Sequence[np.ndarray]) -> None:
        """Hold these inputs, and prepare all that depends on their shapes.

        Raises
        ------
        JobError
            If this rank's local data cannot be loaded.
        """
        self.in_force = False
        shapes = [value.shape for value in values]
        self.warm &= shapes == self._shapes
        self._shapes = shapes
        working = self.working
        flat = not (tree.pays(len(working) + 1) and all(link.reaches_others for link in working))
        near = flat and any(link.near for link in working)
        self._commons = commons = Commons() if near else None
        self._held = [
            np.array(v, order="C") if commons is None else commons.hold(i, v)
            for i, v in enumerate(values)
        ]
        self._contents = [v.tobytes() if v.nbytes <= SMALL else None for v in self._held]
        self._large = [i for i, content in enumerate(self._contents) if content is None]
        self._offsets = {
            move.shapes: packed_offsets(self._held[move.shapes])
            for move in self.program.moves
            if move.shapes is not None
        }
        self.direct = [
            Line(
                link,
                self.number,
                [self.part(i, link.rank, v) for i, v in enumerate(self._held)],
                apart=flat,
                commons=commons if link.near else None,
                answer_parts=self._answer((link.rank,)),
            )
            for link in working
        ]
        self.branches, self.lines = (), self.direct
        if not flat:
            self.branches = tree.branches(self.deal.working, self._branch)
            self.lines = [
                Line(
                    self._links[ranks[0] - 1],
                    self.number,
                    [self._part_of(i, ranks, v) for i, v in enumerate(self._held)],
                    apart=False,
                )
                for ranks in (branch.ranks for branch in self.branches)
            ]
        self._groups = [b.ranks for b in self.branches] or [(rank,) for rank in self.deal.working]
        self.heads = [line.link for line in self.lines]
        self.asked = [link.rank for link in self.heads]
        self.height = max((branch.height for branch in self.branches), default=0)
        self.works = [
            Work(shares[0], [self.part(i, 0, self._held[i]) for i in used])
            for shares, used in zip(self.deal.shares, self.program.uses, strict=True)
        ]

    def part(self, i: int, rank: int, value: np.ndarray) -> np.ndarray:
        """Return a rank's part of an input."""
        runs, move = self.deal.job_runs[i], self.program.moves[i]
        if runs is None:
            return value
        first, last = runs[rank]
        if move.shapes is not None:
            offsets = self._offsets[move.shapes]
            first, last = offsets[first], offsets[last]
        return value[first:last]

    def _part_of(self, i: int, ranks: tuple[int, ...], value: np.ndarray) -> np.ndarray:
        """Return the part of consecutive ranks of an input."""
        rows = self._rows(i, ranks)
        return value if rows is None else value[rows[0] : rows[1]]

    def _rows(self, i: int, ranks: tuple[int, ...]) -> tuple[int, int] | None:
        """Return which rows of an input are theirs; None if it is broadcast."""
        runs, move = self.deal.job_runs[i], self.program.moves[i]
        if runs is None:
            return None
        first, last = runs[ranks[0]][0], runs[ranks[-1]][1]
        if move.shapes is not None:
            offsets = self._offsets[move.shapes]
            first, last = int(offsets[first]), int(offsets[last])
        return first, last

    def _shares_of(self, ranks: tuple[int, ...]) -> list[Share]:
        """Return for each map the share that consecutive ranks have together."""
        return [
            shares[ranks[0]]
            if len(ranks) == 1
            else Share(shares[ranks[0]].map, shares[ranks[0]].low, shares[ranks[-1]].high)
            for shares in self.deal.shares
        ]

    def _branch(self, ranks: tuple[int, ...], parent: int, children: tuple[Branch, ...]) -> Branch:
        runs = tuple((share.low, share.high) for share in self._shares_of(ranks))
        rows = tuple(self._rows(i, ranks) for i in range(len(self._held)))
        return Branch(ranks, parent, runs, rows, self._answer(ranks), children)

    def layouts(self, lines: Sequence[Line]) -> list[tuple[Link, Layout]]:
        """Return what ranks must be told of what will be sent to them."""
        found = tree.all_of(self.branches)
        return [
            (line.link, replace(line.layout, branch=found.get(line.link.rank), warm=self.warm))
            for line in lines
        ]

    def fits(self, values: Sequence[np.ndarray]) -> bool:
        """Return whether all that was prepared still holds for these inputs."""
        return (
            self.in_force
            and [value.shape for value in values] == self._shapes
            and (
                not self._shape_moves
                or all(same_bytes(values[i], self._held[i]) for i in self._shape_moves)
            )
        )

    def send(self, evaluation: int, values: Sequence[np.ndarray]) -> None:
        """Send each working rank what changed since the last time, and hold it."""
        # Until all is sent, nothing is known of what the workers have: an error forgets it.
        self.in_force = False
        self._commons = None  # Who was to find something there has.
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
            runs = [[rank] for rank in everyone] if self.deal.job_runs[i] else [[*everyone]]
            for ranks in runs:
                held, now = (self.part(i, ranks[0], v[i]) for v in (self._held, values))
                if not same_bytes(now, held):
                    held[...] = now
                    for rank in ranks:
                        changed[rank].append(i)
        for branch in self.branches:
            changed[branch.ranks[0]] = sorted({i for rank in branch.ranks for i in changed[rank]})
        return changed

    def send_all(self, evaluation: int) -> None:
        """Send each working rank its part of all inputs, as held."""
        for line in self.lines:
            # In a tree, each has taken them already, see `Controller`.
            line.send(evaluation, () if self.branches else self.everything)
        self.in_force = True

    @property
    def everything(self) -> tuple[int, ...]:
        """All inputs, as `Line.send` takes them."""
        return tuple(range(len(self._held)))

    def give(self, staff: tuple[int, ...]) -> None:
        """Let these ranks work."""
        self.in_force, self.heads = False, []
        self.deal.give(staff)

    def leaders(self, hosts: Sequence[str]) -> list[Line]:
        """Return the first of the working ranks of each host, other than rank 0 itself."""
        return list({hosts[line.link.rank]: line for line in reversed(self.direct)}.values())

    def expect(self) -> None:
        """Find the answers where the links will receive them; nothing may be under way."""
        results: list[list[Sequence[np.ndarray]]] = [[work.outputs] for work in self.works]
        shares = [[work.share] for work in self.works]
        self.spent = []
        for line, ranks in zip(self.lines, self._groups, strict=True):
            packing = Packing(self._answer(ranks), elsewhere=line.places)
            line.link.reserve(packing.nbytes)
            line.answer = line.link.answer
            views, _ = packing.views(line.answer, tuple(range(len(packing.parts))))
            rest = iter(views)
            for k, share in enumerate(self._shares_of(ranks)):
                results[k].append([next(rest) for _ in share.map.job.outputs])
                shares[k].append(share)
            self.spent += [(ranks, spent) for spent in rest]
        self.assemblies = [
            assemble
            for m, own, column in zip(self.program.maps, shares, results, strict=True)
            for assemble in assemblies(m, own, column)
        ]

    def received(self, busy: list[int]) -> None:
        """Find the answers where they are now, and note how long ranks of branches were busy."""
        if any(line.answer is not line.link.answer for line in self.lines):
            self.expect()
        for ranks, spent in self.spent:
            for rank, nanoseconds in zip(ranks, spent.tolist(), strict=True):
                busy[rank] = nanoseconds

    def _answer(self, ranks: tuple[int, ...]) -> Parts:
        """Return the dtypes and shapes of the answer of consecutive ranks."""
        held = [self._part_of(i, ranks, value) for i, value in enumerate(self._held)]
        return answer_parts(self.program, self._shares_of(ranks), held, len(ranks))
