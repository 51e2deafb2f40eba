"""Waiting for messages: quick while a chain runs, idle while it does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["Patience", "wait_until"]


class Patience:
    """How to wait.

    Parameters
    ----------
    spin : float
        Seconds to keep asking, giving the core to others in between (more ranks than cores
        would else hinder each other).
    longest_sleep : float
        After that, sleeps grow from 50 us to this many seconds; an idle rank then needs less
        than one percent of a core.
    """

    def __init__(self, spin: float = 1e-3, longest_sleep: float = 2e-3):
        self.spin, self.longest_sleep = spin, longest_sleep


_FIRST_SLEEP = 50e-6
_GROWTH = 1.5


def wait_until(done: Callable[[], bool], patience: Patience, timeout: float | None = None) -> bool:
    """Wait until `done` says so.

    Parameters
    ----------
    done : callable
        Asked again and again; cheap. Signals such as Ctrl-C are handled between two questions.
    timeout : float, optional
        Seconds after which to give up.

    Returns
    -------
    bool
        Whether it was done in time.
    """
    if done():
        return True
    begun = time.perf_counter()
    while time.perf_counter() - begun < patience.spin:
        if done():
            return True
        os.sched_yield()
    sleep = _FIRST_SLEEP
    while not done():
        if timeout is not None and time.perf_counter() - begun > timeout:
            return False
        time.sleep(sleep)
        sleep = min(sleep * _GROWTH, patience.longest_sleep)
    return True
