"""What travels between the ranks, and how often."""

from contextlib import contextmanager

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap import SerialPool, current_pool, map_rect
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.protocol import HEADER
from tests.helpers import assert_same_bits

N = 64

known = {}
"""The persistent requests made while recording, and the size of the message of each."""


@contextmanager
def recorded(monkeypatch):
    """Record the size of each message down, and each definition or layout, by rank."""
    sizes, orders = [], []
    message, start, order = Link.message, Link.start, Link.order

    def recording_message(self, buffer):
        request = message(self, buffer)
        known[id(request)] = request, len(buffer)
        return request

    def recording_start(self, request):
        sizes.append((self.rank, known[id(request)][1]))
        start(self, request)

    def recording_order(self, number, what):
        orders.append((self.rank, type(what).__name__))
        order(self, number, what)

    with monkeypatch.context() as patch:
        patch.setattr(Link, "message", recording_message)
        patch.setattr(Link, "start", recording_start)
        patch.setattr(Link, "order", recording_order)
        patch.setattr(Balance, "wants_costs", lambda *_: False)
        yield sizes, orders


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
    assert orders == [(r, "Define") for r in others()] + [(r, "Layout") for r in others()]
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
