"""The names of states in messages: what the right-hand side itself calls them."""

import functools
import sys

import numpy as np
import pytensor.tensor as pt

from pymc_mpimap import solve_ivp
from tests.ode.helpers import node_of


def names(rhs):
    y = solve_ivp(rhs, 0.0, [1.0, 2.0, 3.0], [1.0], pt.dscalar("k"))
    return node_of(y).op.system.states


def unpacked(t, y, k):
    gut, central, response = y
    total = gut + central
    return [-k * gut, total, response]


def test_unpacked():
    assert names(unpacked) == ("gut", "central", "response")


def test_by_index():
    def rhs(t, y, k):
        gut = y[0]
        last = y[-1]
        again = gut
        return [-k * again, y[1], last]

    assert names(rhs) == ("gut", "y[1]", "last")


def test_none():
    assert names(lambda t, y, k: -k * y) == ("y[0]", "y[1]", "y[2]")


def test_those_of_the_outermost_function():
    def hill(c):
        return np.sqrt(c)

    def rhs(t, y, k):
        gut, central, response = y
        gut = 2 * gut  # no longer the state
        return [hill(gut), hill(central), k * response]

    assert names(rhs) == ("y[0]", "central", "response")


def test_through_a_wrapper():
    assert names(functools.partial(unpacked)) == ("gut", "central", "response")


def test_a_profiler_goes_on():
    calls = []
    sys.setprofile(lambda *event: calls.append(event[1]))
    try:
        found = names(unpacked)
        mine = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert found == ("y[0]", "y[1]", "y[2]")
    assert mine is not None
    assert calls
