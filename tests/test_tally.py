"""Counts of failed solves: added up over ranks, and told by their reasons."""

import struct

import numpy as np

from pymc_mpimap.ode.faults import ordered
from pymc_mpimap.tally import (
    N_COUNTS,
    N_PLACES,
    NOT_FINITE_DERIVATIVE,
    PLACE,
    PLACES,
    REASONS,
    reasons,
    register_states,
)


def bits(value):
    return struct.unpack("=q", struct.pack("=d", value))[0]


def failed(number, first=0, *places):
    """Return counts of failures with this number, with state, time and value of each."""
    counts = np.zeros(N_COUNTS, np.int64)
    counts[number] = len(places)
    for state, time, value in places:
        place = 2 * (first + state) + (number == NOT_FINITE_DERIVATIVE)
        at = PLACES + PLACE * (place % N_PLACES)
        key, numbers = first + state, (ordered(bits(time)), ordered(bits(value)))
        counts[at : at + PLACE] += [1, key, key * key, *numbers]
    return counts


def test_counts_of_ranks_add_up():
    first = register_states("absorption", ["gut", "central"])
    total = failed(10, first, (0, 3.0, -1e-12)) + failed(10, first, (0, 3.0, -1e-12))
    total += failed(NOT_FINITE_DERIVATIVE, first, (1, 0.5, 0.0))
    total[1] = 4
    assert reasons(total) == {
        REASONS[1]: 4,
        "the right-hand side was not finite where state gut is -1e-12 (absorption, near t = 3)": 2,
        "the derivative of the right-hand side is not finite where state central is 0 "
        "(absorption, near t = 0.5)": 1,
    }


def test_several_times_are_told_by_one_among_them():
    first = register_states("absorption", ["gut", "central"])
    told = reasons(failed(10, first, (1, 2.0, -1e-9), (1, 4.0, -1e-7), (1, 4.0, 1e-7)))
    [(reason, times)] = told.items()
    assert times == 3
    assert 2 <= float(reason.split("near t = ")[1].rstrip(")")) <= 4
    assert -1e-7 <= float(reason.split(" is ")[1].split()[0]) <= 1e-7


def test_states_that_share_a_place_are_not_taken_for_each_other():
    first = register_states("many states", [f"a{i}" for i in range(3 * N_PLACES)])
    one, other, third = (failed(10, first, (3 + k * N_PLACES // 2, 1.0, -1.0)) for k in range(3))
    assert np.array_equal(np.flatnonzero(one), np.flatnonzero(other))
    what = "the right-hand side was not finite"
    assert reasons(one + one) == {f"{what} where state a3 is -1 (many states, near t = 1)": 2}
    assert reasons(other) == {f"{what} where state a11 is -1 (many states, near t = 1)": 1}
    # The sums of two keys tell both, and how often each is there; that of three does not.
    both = {f"{what} at state a3 (many states)": 1, f"{what} at state a11 (many states)": 2}
    assert reasons(one + 2 * other) == both
    assert reasons(one + other + third) == {f"{what} where some state is -1 (near t = 1)": 3}


def test_what_has_no_place_keeps_its_reason():
    counts = np.zeros(N_COUNTS, np.int64)
    counts[9] = 2
    counts[13] = 1
    assert reasons(counts) == {REASONS[9]: 2, REASONS[13]: 1}
