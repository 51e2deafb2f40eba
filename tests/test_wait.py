"""How long is waited for another rank."""

import time
from types import SimpleNamespace

import pytest

from pymc_mpimap.pool import wait
from pymc_mpimap.pool.staff import countdown
from pymc_mpimap.pool.wait import Patience, wait_until

PATIENCE = Patience(spin=0.0)


@pytest.fixture
def stopped(monkeypatch):
    """Return a function: when it is called, this process was stopped for a day."""
    days = []

    def perf_counter():
        return time.perf_counter() + 86400.0 * len(days)

    monkeypatch.setattr(wait, "time", SimpleNamespace(perf_counter=perf_counter, sleep=time.sleep))
    return lambda: days.append("a day")


def test_who_does_not_come_is_given_up():
    assert not wait_until(lambda: False, PATIENCE, 0.05)


def test_nobody_is_late_when_this_process_was_stopped(stopped):
    """Who answered meanwhile, or does so now, is heard; the rest of the time still counts."""
    left = countdown(60.0)
    asked = []

    def done():
        asked.append(None)
        if len(asked) == 3:
            stopped()
        return len(asked) == 6

    assert wait_until(done, PATIENCE, left())
    assert 0.0 < left() <= 60.0
    assert not wait_until(lambda: False, PATIENCE, 0.05)
