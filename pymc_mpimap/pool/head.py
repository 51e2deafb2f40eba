"""A worker's part for the ranks below it in a tree: hand on their inputs, gather answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pymc_mpimap.errors import Incident
from pymc_mpimap.map import Map
from pymc_mpimap.pool.assembly import Gathering, gatherings
from pymc_mpimap.pool.line import Line
from pymc_mpimap.pool.link import Answer, Link
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.protocol import HEADER, Branch, Layout, Packing, Status
from pymc_mpimap.pool.share import Share
from pymc_mpimap.pool.work import Work
from pymc_mpimap.tally import N_COUNTS

__all__ = ["Head"]

_LONG = 1 << 14
"""Bytes from which MPI may need this rank's help until a message has arrived."""


class Head:
    """The first rank of a branch, for one program.

    Parameters
    ----------
    layout : Layout
    maps : sequence of Map
    link_to : callable
        Gives the link to a rank.

    Attributes
    ----------
    own : list of array
        This rank's own part of each input: it follows what `forward` takes out of messages.
    """

    def __init__(self, layout: Layout, maps: Sequence[Map], link_to: Callable[[int], Link]):
        assert layout.branch is not None
        self.branch: Branch = layout.branch
        self._maps = maps
        self._packing = Packing(layout.incoming, len(layout.parts))
        self._whole = [np.zeros(shape, dtype) for dtype, shape in self._packing.parts]
        # The first rows are this rank's.
        self.own = [
            value if rows is None else value[: shape[0]]
            for value, rows, (_, shape) in zip(
                self._whole, self.branch.rows, layout.parts, strict=True
            )
        ]
        self._lines = [
            Line(link_to(child.ranks[0]), layout.number, self._parts(child), apart=False)
            for child in self.branch.children
        ]
        for line, child in zip(self._lines, self.branch.children, strict=True):
            line.link.reserve(Packing(child.answer).nbytes)
        self._message: np.ndarray | None = None
        self._lost: list[Loss] = []
        self._warm = layout.warm
        self._gatherings: list[Gathering] = []
        self._works: list[Work] | None = None
        self.counts = np.zeros(N_COUNTS, np.int64)

    def _parts(self, child: Branch) -> list[np.ndarray]:
        """Return the parts of the inputs that are a child's and of those below it."""
        return [
            value if mine is None or rows is None else value[rows[0] - mine[0] : rows[1] - mine[0]]
            for value, mine, rows in zip(self._whole, self.branch.rows, child.rows, strict=True)
        ]

    def forward(self, message: np.ndarray, evaluation: int) -> None:
        """Take the changed inputs out of a message, and hand on what is not this rank's own."""
        if message is not self._message:
            self._message = message
            self._flags = message[8 * HEADER : 8 * HEADER + self._packing.flags]
            self._changes: dict[bytes, tuple[tuple[int, ...], list[np.ndarray]]] = {}
        flags = self._flags.tobytes()
        if flags not in self._changes:
            chosen = tuple(i for i, flag in enumerate(flags) if flag)
            self._changes[flags] = chosen, self._packing.views(message, chosen)[0]
        changed, places = self._changes[flags]
        for i, place in zip(changed, places, strict=True):
            self._whole[i][...] = place
        self._lost = []
        for line in self._lines:
            try:
                line.link.settle()
                line.send(evaluation, changed)
            except Lost as lost:
                self._lost += lost.losses
        if len(message) > _LONG:
            for line in self._reached():
                try:
                    line.link.sent()
                except Lost as lost:
                    self._lost += lost.losses

    def _reached(self) -> list[Line]:
        """Return the lines to ranks that are not lost."""
        gone = {loss.rank for loss in self._lost}
        return [line for line in self._lines if line.link.rank not in gone]

    def _answers(self, evaluation: int) -> Iterator[Answer]:
        """Wait for the answers of those below, and note who is lost."""
        heights = {child.ranks[0]: child.height for child in self.branch.children}
        for line in self._reached():
            link = line.link
            # Compilation takes long. Who is lower down is given less time, so that it is named who
            # is late, and not who waits for it.
            limit = link.patience.late_at(heights[link.rank])
            if not self._warm:
                limit = link.patience.longest
            try:
                answer = link.collect(evaluation, limit)
                if answer is None:
                    raise link.late(limit or 0.0)
            except Lost as lost:
                self._lost += lost.losses
                continue
            if answer.status == Status.LOST:
                self._lost += answer.payload
            else:
                yield answer

    def prepare(self, works: list[Work], places: Sequence[np.ndarray]) -> None:
        """Find this rank's results, and where those of the branch go: its answer's arrays."""
        self._works, self._places = works, places
        self._expect()

    def _expect(self) -> None:
        """Find the answers of those below where the links receive them."""
        assert self._works is not None
        self._gatherings = []
        self._spent: list[np.ndarray | None] = []
        results: list[list[Sequence[np.ndarray]]] = [[work.outputs] for work in self._works]
        shares = [[work.share] for work in self._works]
        for line, child in zip(self._lines, self.branch.children, strict=True):
            packing = Packing(child.answer)
            line.answer = line.link.answer
            views, _ = packing.views(line.answer, tuple(range(len(packing.parts))))
            rest = iter(views)
            for k, (m, run) in enumerate(zip(self._maps, child.runs, strict=True)):
                results[k].append([next(rest) for _ in m.job.outputs])
                shares[k].append(Share(m, *run, child.ranks[0]))
            self._spent.append(next(rest, None))
        rest = iter(self._places)
        for k, (m, run) in enumerate(zip(self._maps, self.branch.runs, strict=True)):
            whole = Share(m, *run, self.branch.ranks[0])
            places = [next(rest) for _ in m.job.outputs]
            self._gatherings += gatherings(whole, shares[k], results[k], places)

    def gather(
        self, evaluation: int, status: Status, spent: int, failures: list[Incident]
    ) -> tuple[Status, int, list[Incident] | list[Loss]]:
        """Wait for those below, and put their results and this rank's into the answer.

        Parameters
        ----------
        evaluation : int
        status : Status
        spent : int
        failures : list of JobFailure or NotFinite
            Of this rank itself.

        Returns
        -------
        status, spent, failures
            Of the branch: the worst, the longest, and all (where one failed, the first's; where
            ranks were lost, which). What was counted below is found in `counts`.
        """
        failed = failures if status == Status.FAILED else []
        rejected = [] if failed else list(failures)
        times = [spent]
        self.counts[:] = 0
        for answer in self._answers(evaluation):
            if answer.counts is not None:
                self.counts += answer.counts
            if answer.status == Status.FAILED:
                failed = failed + answer.payload
            else:
                rejected += answer.payload
            times.append(answer.spent)
        if self._lost:
            return Status.LOST, max(times), self._lost
        self._warm = True
        if failed:
            return Status.FAILED, max(times), [min(failed, key=lambda failure: failure.job)]
        if any(line.answer is not line.link.answer for line in self._lines):
            self._expect()
        for gathering in self._gatherings:
            gathering()
        self._say_spent(times)
        return Status.REJECTED if rejected else Status.OK, max(times), rejected

    def _say_spent(self, times: Sequence[int]) -> None:
        """Write into the answer how long each rank of the branch was busy."""
        place, start = self._places[-1], 1
        place[0] = times[0]
        for each, longest, child in zip(self._spent, times[1:], self.branch.children, strict=True):
            end = start + len(child.ranks)
            place[start:end] = longest if each is None else each
            start = end

    def settle(self) -> None:
        """Wait until nobody below has anything to do."""
        for line in self._reached():
            with contextlib.suppress(Lost):
                line.link.settle()
