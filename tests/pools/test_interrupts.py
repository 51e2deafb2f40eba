"""Ctrl-C at the worst moments: the next call gives what it should."""

import signal
from contextlib import nullcontext

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import current_pool, map_rect, numeric_job
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.link import Link
from tests.helpers import assert_same_bits, large_arrays, rejects
from tests.interrupting import interrupt_at_every_line


@pytest.fixture(autouse=True)
def _no_moves(monkeypatch):
    """Let every rank keep its jobs: these are so cheap that rank 0 would take all of them."""
    monkeypatch.setattr(Balance, "wants_costs", lambda *_: False)


def interrupted():
    """Return what a call raises: a serial pool sends nothing that could be interrupted."""
    alone = getattr(current_pool(), "ranks", 1) == 1
    return nullcontext() if alone else pytest.raises(KeyboardInterrupt)


def striking(method):
    """Return a method of Link that is followed by Ctrl-C, the first time."""
    struck = []

    def wrapper(self, *arguments):
        result = method(self, *arguments)
        if not struck:
            struck.append(self.rank)
            signal.raise_signal(signal.SIGINT)
        return result

    return wrapper


def build(size):
    theta = pt.dvector("theta", shape=(size,))
    held = np.arange(6.0 * size).reshape(6, size)
    return pytensor.function([theta], map_rect(lambda t, job, x: (t * x).sum(), theta, 6, held))


@pytest.mark.parametrize(
    ("size", "where"), [(3, "packed"), (10_000, "apart"), (10_001, "in common")]
)
def test_interrupted_at_any_line(size, where):
    """Wherever it strikes, no answer is taken for another's and no rank has stale inputs."""
    expected = np.arange(6.0 * size).reshape(6, size).sum(axis=1)
    with large_arrays(where):
        assert interrupt_at_every_line(build(size), size, expected) > 30


@pytest.mark.parametrize("step", ["start", "order"])
def test_interrupted_while_sending(monkeypatch, step):
    size = {"start": 3, "order": 4}[step]
    function, expected = build(size), np.arange(6.0 * size).reshape(6, size).sum(axis=1)
    if step == "start":  # Else the definition is interrupted.
        assert_same_bits(function(np.ones(size)), expected)
    with monkeypatch.context() as patch:
        patch.setattr(Link, step, striking(getattr(Link, step)))
        with interrupted():
            function(np.full(size, 7.0))
    # The same values as before: a rank that got others must be sent them again.
    assert_same_bits(function(np.ones(size)), expected)
    # And a program that the ranks do not know yet.
    other = build(5)(np.ones(5))
    assert_same_bits(other, np.arange(30.0).reshape(6, 5).sum(axis=1))


@rejects
def test_interrupted_evaluation_that_fails_at_length(monkeypatch):
    """A long account of a failure is on its way when large data are to be sent."""

    @numeric_job(derivatives=None)
    def fails(theta, job):
        if theta < 0:
            raise ValueError("x" * 5_000_000)
        return theta * job

    theta = pt.dscalar("theta")
    function = pytensor.function([theta], map_rect(fails, theta, np.ones(6), on_error="reject"))
    assert_same_bits(function(1.0), np.ones(6))
    with monkeypatch.context() as patch:
        patch.setattr(Link, "start", striking(Link.start))
        with interrupted():
            function(-1.0)
    assert_same_bits(build(200_000)(np.zeros(200_000)), np.zeros(6))
    assert_same_bits(function(2.0), np.full(6, 2.0))
