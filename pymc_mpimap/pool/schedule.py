"""The schedule of the controller: a pure state machine from events to the next step.

It knows neither MPI nor a clock. `Controller` does what it says, and tells it of each answer and
each loss. So every order of answers, deaths, interruptions and shutdowns can be tried without a
single rank (tests/test_schedule.py).

The phases, and what leads from one to the other::

            begin()             over(): RETURN
    CALM ------------> ASKED ------------------> CALM
                         |
                         | an exception, Ctrl-C, a loss: nobody tells, the phase just stays
                         v
                 next(): QUIET: all ranks are asked for a sign of life, until all have answered
                         |
                         | over()
                         v
                       CALM

What was asked for and is not waited for any more may still be answered. Such an answer is known by
its number, and dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto

from pymc_mpimap.pool.loss import Loss

__all__ = ["Schedule", "Step"]

_STORY = 200
"""The number of events that `story` keeps."""


class Step(Enum):
    """The next step of the controller."""

    SEND = auto()
    """Send the evaluation: everybody waits for it."""

    QUIET = auto()
    """Ask all ranks for a sign of life: some may be at something that nobody waits for."""

    RETURN = auto()
    """All have answered: the outputs can be put together."""

    AGAIN = auto()
    """A rank was lost meanwhile: deal its jobs to those that are left, and evaluate again."""

    END = auto()
    """The run cannot go on."""


class Schedule:
    """The ranks that are there, the answers that they owe, and the step that follows.

    Parameters
    ----------
    workers : iterable of int
        The ranks besides this one.
    goes_on : bool
        Whether to go on with those that are left when a rank is lost.

    Attributes
    ----------
    staff : tuple of int
        The workers that are not lost, in order. Another tuple whenever they change.
    evaluation : int
        The number of what was asked last.
    losses : list of Loss
        All so far.

    Examples
    --------
    >>> schedule = Schedule(workers=[1, 2])
    >>> schedule.next()
    <Step.SEND: 1>
    >>> number = schedule.begin([1, 2])
    >>> schedule.answered(1, number)
    True
    >>> schedule.lost(Loss(2, "died"))
    >>> schedule.over()
    <Step.AGAIN: 4>
    >>> schedule.staff
    (1,)
    """

    def __init__(self, workers: Iterable[int], *, goes_on: bool = True):
        self.staff = tuple(sorted(workers))
        self.goes_on = goes_on
        self.evaluation = 0
        self.losses: list[Loss] = []
        self._owing: set[int] = set()
        self._calm = True
        self._stopped = False
        self._lost_meanwhile = False
        self._events: deque[tuple[object, ...]] = deque(maxlen=_STORY)

    def next(self) -> Step:
        """Say what comes before an evaluation, or that it may be sent."""
        if self._stopped or (self.losses and not self.goes_on):
            return Step.END
        return Step.SEND if self._calm else Step.QUIET

    def begin(self, ranks: Iterable[int]) -> int:
        """Note that something is about to be asked of these ranks; return its number."""
        self._calm = self._lost_meanwhile = False
        self._owing = set(ranks)
        self.evaluation += 1
        self._events.append(("asked", self.evaluation, *self._owing))
        return self.evaluation

    def answered(self, rank: int, evaluation: int) -> bool:
        """Note an answer; say whether it is the one that is waited for."""
        self._events.append(("answered", evaluation, rank))
        if evaluation != self.evaluation or rank not in self._owing:
            return False
        self._owing.remove(rank)
        return True

    def lost(self, loss: Loss) -> None:
        """Note that a rank is lost. What it says from now on is not listened to."""
        if loss.rank in self.staff:
            self._calm = False
            self._events.append(("lost", loss.rank, loss.how))
            self.staff = tuple(rank for rank in self.staff if rank != loss.rank)
            self.losses.append(loss)
            self._owing.discard(loss.rank)
            self._lost_meanwhile = True

    def replaced(self, rank: int) -> None:
        """Note that another process has taken a lost rank's place."""
        assert rank not in self.staff
        self._events.append(("replaced", rank))
        self.staff = tuple(sorted((*self.staff, rank)))

    def over(self) -> Step:
        """Say what follows when nobody owes an answer any more.

        Those who were lost owe none. But what was asked is then asked again: in a tree, others may
        have worked for a rank that was lost, and their results be lost with it.
        """
        assert not self._owing, f"{self._owing} have not answered"
        if self.losses and not self.goes_on:
            return Step.END
        if self._lost_meanwhile:
            return Step.AGAIN
        self._calm = True
        return Step.RETURN

    def stop(self) -> None:
        """Note the end: nothing is evaluated any more."""
        self._events.append(("stopped",))
        self._stopped = True

    @property
    def owing(self) -> frozenset[int]:
        """The ranks that owe an answer."""
        return frozenset(self._owing)

    def validate(self) -> None:
        """Check what must hold between any two events.

        Raises
        ------
        AssertionError
        """
        gone = {loss.rank for loss in self.losses} - set(self.staff)
        assert list(self.staff) == sorted(set(self.staff)), "a rank is there twice"
        assert not self._owing & gone, "something is expected of a lost rank"
        assert not (self._calm and self._owing), "calm, though ranks are at work"
        assert not (self._calm and self._lost_meanwhile), "calm, though jobs were lost"

    def story(self) -> list[tuple[object, ...]]:
        """Return the latest events, in order."""
        return list(self._events)
