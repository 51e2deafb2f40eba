"""Ctrl-C at the worst moments: the next call gives what it should."""

import signal
from contextlib import nullcontext

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import current_pool, map_rect, numeric_job
from pymc_mpimap.pool.controller import Link
from tests.helpers import assert_same_bits


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


@pytest.mark.parametrize("step", ["send", "control"])
def test_interrupted_while_sending(monkeypatch, step):
    size = {"send": 3, "control": 4}[step]
    function, expected = build(size), np.arange(6.0 * size).reshape(6, size).sum(axis=1)
    if step == "send":  # Else the definition is interrupted.
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
        patch.setattr(Link, "send", striking(Link.send))
        with interrupted():
            function(-1.0)
    assert_same_bits(build(200_000)(np.zeros(200_000)), np.zeros(6))
    assert_same_bits(function(2.0), np.full(6, 2.0))
