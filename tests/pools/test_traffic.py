"""What travels between the ranks, and how often."""

import os
from contextlib import contextmanager, nullcontext

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, SerialPool, current_pool, map_rect, numeric_job
from pymc_mpimap.blocks import subtrees
from pymc_mpimap.pool import link
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.parcel import pack
from pymc_mpimap.pool.protocol import HEADER, LARGE
from tests.helpers import assert_same_bits, large_arrays

N = 64

known = {}
"""The persistent requests made while recording, and the size of the message of each."""


@contextmanager
def recorded(monkeypatch):
    """Record the size of each message down, with what goes apart, and each order, by rank."""
    sizes, orders = [], []
    message, start, order = Link.message, Link.start, Link.order

    def recording_message(self, buffer, *tag):
        request = message(self, buffer, *tag)
        known[id(request)] = request, len(buffer)
        return request

    def recording_start(self, request, apart=()):
        sizes.append((self.rank, sum(known[id(part)][1] for part in (request, *apart))))
        start(self, request, apart)

    def recording_order(self, number, what, *known):
        orders.append((self.rank, type(what).__name__))
        order(self, number, what, *known)

    with monkeypatch.context() as patch:
        patch.setattr(Link, "message", recording_message)
        patch.setattr(Link, "start", recording_start)
        patch.setattr(Link, "order", recording_order)
        patch.setattr(Balance, "wants_costs", lambda *_: False)
        yield sizes, orders


@contextmanager
def answers(monkeypatch):
    """Record the size of the answers that are made ready for, by rank."""
    sizes, reserve = [], Link.reserve

    def recording_reserve(self, nbytes):
        sizes.append((self.rank, nbytes))
        reserve(self, nbytes)

    with monkeypatch.context() as patch:
        patch.setattr(Link, "reserve", recording_reserve)
        yield sizes


def others():
    """Return the ranks that are sent something: none under a serial pool."""
    return range(1, getattr(current_pool(), "ranks", 1))


def build():
    shared = pytensor.shared(np.ones((N, 100)), name="data")
    held = np.arange(N * 50.0).reshape(N, 50)
    theta = pt.dvector("theta", shape=(3,))

    def f(theta, job, x_r, x_i):
        return theta.sum() * x_r.sum() + x_i.sum()

    output = map_rect(f, theta, N, shared, held, grain_size=1)
    return shared, pytensor.function([theta], [output.sum(), pt.grad(output.sum(), theta)])


def message(*numbers_of_doubles, inputs):
    """Return the size of a message: header, a flag an input padded to eight, values."""
    return 8 * HEADER + -(-inputs // 8) * 8 + 8 * sum(numbers_of_doubles)


def test_data_travel_once_and_a_change_alone(monkeypatch):
    shared, function = build()
    with recorded(monkeypatch) as (sizes, orders):
        function(np.ones(3))
    helper = [(1, "Define"), (1, "Layout")] if len(others()) else []
    assert orders == [
        *helper,
        *((r, "Define") for r in others()[1:]),
        *((r, "Layout") for r in others()),
    ]
    jobs = {
        r: N * (r + 1) // (max(others(), default=0) + 1) - N * r // (max(others(), default=0) + 1)
        for r in others()
    }
    first = dict(sizes)
    # theta, the data and the cotangents of this rank's own jobs; held data are in the definition.
    assert first == {r: message(3, 100 * jobs[r], jobs[r], inputs=3) for r in others()}

    with recorded(monkeypatch) as (sizes, orders):
        function(np.full(3, 2.0))
        function(np.full(3, 3.0))
    assert orders == []
    assert sizes == [(r, message(3, inputs=3)) for _ in range(2) for r in others()]

    with recorded(monkeypatch) as (sizes, orders):
        function(np.full(3, 3.0))
    assert sizes == [(r, message(inputs=3)) for r in others()]

    # In place, behind the shared variable's back, in the last job: its owner alone is told.
    shared.get_value(borrow=True)[-1, -1] = 7.0
    with recorded(monkeypatch) as (sizes, orders):
        result = function(np.full(3, 3.0))
    assert orders == []
    last = max(others(), default=0)
    assert sizes == [
        (r, message(*([100 * jobs[r]] if r == last else []), inputs=3)) for r in others()
    ]
    with SerialPool():
        assert_same_bits(result, function(np.full(3, 3.0)))


def test_one_definition_for_equal_ops(monkeypatch):
    """A model that is compiled again is known already."""
    _, function = build()
    function(np.ones(3))
    with recorded(monkeypatch) as (_, orders):
        build()[1](np.ones(3))
    assert "Define" not in [kind for _, kind in orders]


@pytest.mark.parametrize("where", ["apart", "in common"])
def test_large_inputs_travel_apart_or_not_at_all(monkeypatch, where):
    """They are sent from where they stay to where they stay, and only if they changed.

    On one host they are in memory that all ranks use.
    """
    with large_arrays(where):
        check_large_inputs(monkeypatch, where)


def check_large_inputs(monkeypatch, where):
    size = 2 * LARGE // 8
    theta, jobs = pt.dvector("theta", shape=(size,)), pt.dmatrix("jobs", shape=(8, size))
    total = map_rect(lambda theta, job: (theta * job).sum(), theta, jobs, grain_size=1).sum()
    function = pytensor.function([theta, jobs], [total, *pt.grad(total, [theta, jobs])])
    random = np.random.default_rng(1)
    points = [random.normal(size=size), random.normal(size=(8, size))]
    with recorded(monkeypatch), answers(monkeypatch) as reserved:
        function(*points)
    n_ranks = max(others(), default=0) + 1
    own = [8 * (r + 1) // n_ranks - 8 * r // n_ranks for r in range(n_ranks)]
    # The answer: sums of the values and for theta (one a subtree), derivatives by the jobs' own.
    sums = {r: len(list(subtrees(8, 8 * r // n_ranks, 8 * (r + 1) // n_ranks))) for r in others()}
    back = {r: (size * sums[r], size * own[r]) if where == "apart" else () for r in others()}
    assert reserved == [(r, message(sums[r], *back[r], inputs=0)) for r in others()]
    for changed in ([0], [1], [0, 1], []):
        for i in changed:
            points[i] = points[i] + 1.0
        with recorded(monkeypatch) as (sizes, orders):
            result = function(*points)
        assert orders == []
        lengths = {0: lambda _: size, 1: lambda r: size * own[r]}
        sent = changed if where == "apart" else []
        assert sizes == [(r, message(*(lengths[i](r) for i in sent), inputs=3)) for r in others()]
        with SerialPool():
            assert_same_bits(result, function(*points))


@pytest.mark.parametrize("on_error", ["raise", "reject"])
def test_bytes_do_not_grow_with_the_jobs(monkeypatch, on_error):
    """Neither down nor up, whatever is made of the values' sum; the bits are those of any pool."""
    theta, scale = pt.dvector("theta", shape=(3,)), pt.dscalar("scale")
    traffic = []
    for n in (64, 256, 1024):
        x = np.random.default_rng(n).normal(size=(n, 3))
        values = map_rect(
            lambda theta, _, x: pt.exp(-((theta * x) ** 2)).sum(), theta, n, x, on_error=on_error
        )
        total = (0.5 * scale * values).sum()
        function = pytensor.function([theta, scale], [total, *pt.grad(total, [theta, scale])])
        with recorded(monkeypatch), answers(monkeypatch) as back:
            function(np.ones(3), 1.0)
        with recorded(monkeypatch) as (sizes, orders):
            result = function(np.full(3, 0.7), 1.0)
        assert orders == []
        with SerialPool():
            assert_same_bits(result, function(np.full(3, 0.7), 1.0))
        traffic.append((sizes, back))
    assert traffic == [traffic[0]] * 3
    assert [rank for rank, _ in traffic[0][1]] == list(others())


class Homesick:
    """An object that can be unpickled in its own process alone."""

    def __init__(self, home):
        if home != os.getpid():
            raise RuntimeError("far from home")
        self.home = home

    def __reduce__(self):
        return Homesick, (self.home,)


@pytest.mark.parametrize("where", ["apart", "in common"])
def test_large_inputs_of_a_program_that_did_not_arrive(where):
    """What was sent to it is received all the same, and not taken for what comes next."""
    with large_arrays(where):
        check_program_that_did_not_arrive()


def check_program_that_did_not_arrive():

    @numeric_job(derivatives=None)
    def job(theta, _job, _x):
        return theta.sum()

    size = 2 * LARGE // 8
    theta = pt.dvector("theta", shape=(size,))
    values = map_rect(job, theta, 8, [Homesick(os.getpid()) for _ in range(8)])
    function = pytensor.function([theta], values)
    for scale in (1.0, 2.0):
        with nullcontext() if not others() else pytest.raises(JobError, match="far from home"):
            function(np.full(size, scale))
    other = pytensor.function([theta], map_rect(lambda t, j: t.sum() * j, theta, np.arange(8.0)))
    for scale in (3.0, 4.0):
        assert_same_bits(other(np.full(size, scale)), size * scale * np.arange(8.0))


def test_data_of_several_programs_travel_once(monkeypatch):
    """A program of the value, one of the value and its gradient, and one of other jobs' data."""
    held, own = np.arange(8 * 5000.0).reshape(8, 5000), np.ones((8, 3))
    theta = pt.dscalar("theta")
    total = map_rect(lambda theta, job, x: theta * x.sum() + job.sum(), theta, own, held).sum()
    other = map_rect(lambda theta, job, x: theta * job.sum() - x[0], theta, own, held).sum()
    sent = []

    def recording_pack(order, known):
        pickled, arrays = pack(order, known)
        sent.append(sum(array.nbytes for array in arrays))
        return pickled, arrays

    monkeypatch.setattr(link, "pack", recording_pack)
    functions = [
        pytensor.function([theta], outputs)
        for outputs in ([total], [total, pt.grad(total, theta)], [other])
    ]
    for function in functions:
        for scale in (1.0, 2.0):
            result = function(scale)
            with SerialPool():
                assert_same_bits(result, function(scale))
    # Shapes of messages and the like aside.
    everything = held.nbytes + own.nbytes
    here = 8 // (max(others(), default=0) + 1) / 8 * everything
    assert sum(sent) <= everything - here + 1000
