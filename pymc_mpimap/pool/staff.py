"""The workers: who is there, and what becomes of those who are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

from pymc_mpimap.errors import MapRectWarning, RankLostError
from pymc_mpimap.pool.alarm import Alarm
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.module_state import Snapshot
from pymc_mpimap.pool.protocol import Command
from pymc_mpimap.pool.report import Recorder
from pymc_mpimap.pool.schedule import Schedule, Step
from pymc_mpimap.pool.wait import Patience, clock

__all__ = ["Countdown", "Staff", "countdown"]

Countdown = Callable[[], float | None]
"""A function that returns the seconds left of a time; None if there is no limit."""


def _unlimited() -> None:
    return None


def countdown(timeout: float | None) -> Countdown:
    """Return what says how much is left of a time that begins now."""
    if timeout is None:
        return _unlimited
    deadline = clock() + timeout
    return lambda: max(0.0, deadline - clock())


class Staff:
    """The links to all workers, and the schedule by which they are asked.

    Parameters
    ----------
    links : sequence of Link
        To the ranks 1, 2, ...
    hosts : sequence of str
        Where each rank runs.
    patience : Patience
        That of the links.
    replace : callable, optional
        Called with a `Loss`; returns the link to another worker that takes the lost one's place,
        or None.
    dismiss : callable, optional
        Called with a `Loss` of a rank that may still run; ends it, and says whether it could.
    start : Snapshot, optional
        What the user's modules held when the ranks met, if all run the user's script.

    Attributes
    ----------
    schedule : Schedule
    limit : float or None
        Seconds that may pass until the ranks have answered what was asked last.
    at_large : set of int
        The ranks that are lost, and may still run.
    """

    def __init__(
        self,
        links: Sequence[Link],
        hosts: Sequence[str],
        patience: Patience,
        *,
        replace: Callable[[Loss], Link | None] = lambda _: None,
        dismiss: Callable[[Loss], bool] = lambda _: False,
        start: Snapshot | None = None,
    ):
        self.links, self.hosts, self.patience = list(links), hosts, patience
        self.schedule = Schedule(link.rank for link in links)
        self.limit: float | None = None
        self._alarm: Alarm | None = None
        self._replace, self._dismiss, self.start = replace, dismiss, start
        self._taken = 0
        self.at_large: set[int] = set()
        # MPI may still write to their buffers.
        self._lost_links: list[Link] = []

    @property
    def alarm(self) -> Alarm:
        """The alarm for this rank's own jobs: where one does not return, nobody else can help."""
        if self._alarm is None:
            self._alarm = Alarm(fatal=True)
        return self._alarm

    def present(self) -> list[Link]:
        """Return the links to the ranks that are there."""
        return [self.links[rank - 1] for rank in self.schedule.staff]

    def settle(self, links: Iterable[Link]) -> None:
        """Wait until nothing is under way to these ranks.

        Raises
        ------
        Lost
        """
        for link in links:
            if not link.settle(self.limit):
                raise link.late(self.limit or 0.0)

    def note(self, losses: Sequence[Loss]) -> None:
        """Note that ranks are lost."""
        for loss in losses:
            self.schedule.lost(loss)
            if loss.silent and not self._dismiss(loss):
                self.at_large.add(loss.rank)

    def get_ready(self, forget: Callable[[int], None], recorder: Recorder) -> None:
        """Do what must be done before something can be asked.

        Parameters
        ----------
        forget : callable
            Called with each rank that was lost: a worker that takes its place knows nothing.
        recorder : Recorder

        Raises
        ------
        RankLostError
            If a rank was lost, and the pool does not go on without it.
        """
        step = self.schedule.next()
        while step is Step.QUIET:
            self._quiet(self.limit)
            self._take_losses(forget, recorder)
            step = self.schedule.next()
        if step is Step.END:
            loss = self.schedule.losses[-1]
            raise RankLostError(loss.rank, self.hosts[loss.rank], loss.how)

    def _take_losses(self, forget: Callable[[int], None], recorder: Recorder) -> None:
        """Let others take the places of ranks that were lost, or say who is missing."""
        for loss in self.schedule.losses[self._taken :]:
            rank, host = loss.rank, self.hosts[loss.rank]
            forget(rank)
            link = self._replace(loss) if self.schedule.goes_on else None
            self._taken += 1
            if link is not None:
                self._lost_links.append(self.links[rank - 1])
                self.links[rank - 1] = link
                self.schedule.replaced(rank)
                consequence = "another worker has taken its place"
            else:
                left = len(self.schedule.staff) + 1
                others = "this rank does" if left == 1 else f"the {left} ranks that are left do"
                consequence = f"{others} its jobs" if self.schedule.goes_on else "the run ends"
            said = f"rank {rank} on {host} {loss.how}; {consequence}"
            recorder.lost(said)
            if self.schedule.goes_on:
                warnings.warn(f"{said}. Results stay the same", MapRectWarning, stacklevel=2)

    def _quiet(self, timeout: float | None) -> None:
        """Wait until no rank is at anything any more; who is not so in time is lost.

        In a tree, what rank 0 sends to a rank could otherwise overtake what another rank does.
        """
        left = countdown(timeout)
        for link in self.present():
            try:
                if not link.settle(left()):
                    raise link.late(timeout or 0.0)
            except Lost as lost:
                self.note(lost.losses)
        # An evaluation may have been sent, and Ctrl-C have struck before that was noted. Who
        # answers this has done all that was sent before.
        self._ask(Command.PING, timeout, left)

    def _ask(self, command: Command, timeout: float | None, left: Countdown) -> None:
        """Have a command answered by all; who does not do so in time is lost.

        All are told how many were lost, for the end.
        """
        number = self.schedule.begin(self.schedule.staff)
        for link in self.present():
            try:
                if not link.settle(left()):
                    raise link.late(timeout or 0.0)
                link.ask(command, number, len(self.schedule.losses))
            except Lost as lost:
                self.note(lost.losses)
        for link in self.present():
            try:
                if link.collect(number, left()) is None:
                    raise link.late(timeout or 0.0)
                self.schedule.answered(link.rank, number)
            except Lost as lost:
                self.note(lost.losses)
        self.schedule.over()

    def stop(self, timeout: float) -> bool:
        """Tell all workers to stop; say whether no rank is left running.

        Parameters
        ----------
        timeout : float
            Seconds that they get to answer.
        """
        left = countdown(timeout)
        self._quiet(left())
        with Uninterrupted():
            self._ask(Command.STOP, timeout, left)
            self.schedule.stop()
        return not self.at_large
