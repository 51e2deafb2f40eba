"""Waiting for messages: quick while a chain runs, idle while it does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from pymc_mpimap.pool.doorbell import Doorbell

__all__ = ["SPIN", "Patience", "clock", "wait_until"]

SPIN = 10e-3
"""Seconds: longer than a sampler's own work between two gradients, see docs/performance.md."""


class Patience:
    """A way of waiting.

    Parameters
    ----------
    spin : float
        Seconds to keep asking, giving the core to others in between (more ranks than cores
        would else hinder each other). After that, sleep.
    bell : Doorbell, optional
        What wakes this rank and others of its host. Without it, sleeps grow from 50 us to 2 ms.
    limit : float, optional
        Seconds after which another rank that does not answer is lost; by default none is.
    """

    def __init__(
        self, spin: float = SPIN, bell: Doorbell | None = None, limit: float | None = None
    ):
        self.spin, self.bell, self.limit = spin, bell, limit

    @property
    def longest(self) -> float | None:
        """Seconds that a rank may take that compiles, loads data or takes a message."""
        return None if self.limit is None else max(self.limit, _COMPILING)

    def late_at(self, height: int) -> float | None:
        """Seconds that a rank may take for an evaluation with so many levels of ranks below it."""
        return None if self.limit is None else self.limit + height * (1.0 + 0.25 * self.limit)

    def bell_for(self, rank: int) -> Doorbell | None:
        """Return what wakes this rank when that one sends something, and the other way round."""
        return self.bell if self.bell is not None and self.bell.reaches(rank) else None


_COMPILING = 600.0
"""Seconds: a large model, on a machine that is busy."""

_FIRST_SLEEP = 50e-6
_GROWTH = 1.5
_LONGEST_SLEEP = 2e-3
_LONGEST_NAP = 50e-3
"""Seconds: where a bell wakes. Only if the bell fails is it waited so long."""


_STOPPED = 1.0
"""Seconds without a look at the clock while waiting: this process was stopped, or had no core."""


class _Clock:
    """Seconds in which this process could have heard of others.

    Those in which it was stopped (Ctrl-Z) are left out: nobody has been late by them.
    """

    def __init__(self) -> None:
        self._looked = time.perf_counter()
        self._left_out = 0.0

    def __call__(self) -> float:
        now = time.perf_counter()
        if now - self._looked > _STOPPED:
            self._left_out += now - self._looked
        self._looked = now
        return now - self._left_out


clock = _Clock()
"""The clock of deadlines."""


def wait_until(
    done: Callable[[], bool],
    patience: Patience,
    timeout: float | None = None,
    bell: Doorbell | None = None,
) -> bool:
    """Wait until `done` says so.

    Parameters
    ----------
    done : callable
        Asked again and again; cheap. Signals such as Ctrl-C are handled between two questions.
    patience : Patience
    timeout : float, optional
        Seconds after which to give up.
    bell : Doorbell, optional
        Rings when what is waited for is on its way. It may need more questions until it is done.

    Returns
    -------
    bool
        Whether it was done in time.
    """
    if done():
        return True
    deadline = None if timeout is None else clock() + timeout
    while True:
        spin_until = time.perf_counter() + patience.spin
        while time.perf_counter() < spin_until:
            if done():
                return True
            os.sched_yield()
        if bell is None:
            return _wait_asleep(done, deadline)
        bell.asleep(True)
        try:
            if not _wait_for_bell(done, deadline, bell):
                return False
        finally:
            bell.asleep(False)
        if done():
            return True


def _wait_asleep(done: Callable[[], bool], deadline: float | None) -> bool:
    sleep = _FIRST_SLEEP
    while not done():
        if deadline is not None and clock() > deadline:
            return False
        time.sleep(sleep)
        sleep = min(sleep * _GROWTH, _LONGEST_SLEEP)
    return True


def _wait_for_bell(done: Callable[[], bool], deadline: float | None, bell: Doorbell) -> bool:
    """Sleep until the bell rings or all is done; say whether that was in time."""
    while not done():
        nap = _LONGEST_NAP
        if deadline is not None:
            nap = min(nap, deadline - clock())
            if nap <= 0:
                return False
        if bell.sleep(nap):
            break
    return True
