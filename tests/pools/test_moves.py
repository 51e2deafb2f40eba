"""Jobs that change owner: the same bits, and data that follow them."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import SerialPool, current_pool, local, map_rect, numeric_job
from pymc_mpimap.pool import controller
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.protocol import Layout, Transfer
from tests.helpers import assert_same_bits

N = 23


def ranks():
    """Return how many ranks work: one under a serial pool."""
    return getattr(current_pool(), "ranks", 1)


@pytest.fixture
def move_always(monkeypatch):
    """Let each evaluation be followed by a move to random cut points; return the orders sent."""
    random = np.random.default_rng(1)
    orders = []
    order = Link.order

    def recording_order(self, number, what, *known):
        orders.append((self.rank, what))
        order(self, number, what, *known)

    def propose(self, costs, moving=0.0):
        assert costs.shape == (self.n_blocks,)
        inner = random.integers(0, self.n_blocks + 1, size=self.n_ranks - 1)
        self.cuts = [0, *sorted(inner.tolist()), self.n_blocks]
        return self.cuts

    monkeypatch.setattr(Balance, "wants_costs", lambda *_: True)
    monkeypatch.setattr(Balance, "propose", propose)
    monkeypatch.setattr(Link, "order", recording_order)
    # However fast the evaluations follow one another.
    monkeypatch.setattr(controller, "_BETWEEN_LOOKS", 0)
    monkeypatch.setattr(controller, "_PATIENCE", 0)
    return orders


def load(job):
    return np.arange(job + 1.0)


def stacked(theta, job, x):
    return theta.sum() * job + (x * theta).sum()


def ragged(theta, job, x):
    return theta.sum() * job + (x**2).sum()


@numeric_job
def with_objects(theta, job, x):
    return float(theta.sum() * job + len(x)), np.full(2, job), theta.sum()


DATA = {
    "stacked": (stacked, np.arange(N * 2.0).reshape(N, 2)),
    "ragged": (ragged, [np.arange(j % 4 + 0.5) for j in range(N)]),
    "local": (ragged, local(load, like=np.empty(0))),
    "objects": (with_objects, ["x" * (j % 5) for j in range(N)]),
}


@pytest.mark.parametrize("kind", DATA)
def test_same_bits_wherever_the_jobs_are(move_always, kind):
    f, data = DATA[kind]
    theta, jobs = pt.dvector("theta", shape=(2,)), pt.dvector("jobs", shape=(N,))
    values = map_rect(f, theta, jobs, data, grain_size=2)
    total = values.sum()
    function = pytensor.function(
        [theta, jobs], [values, total, *pt.grad(total, [theta, jobs])], on_unused_input="ignore"
    )
    random = np.random.default_rng(2)
    for _ in range(25):
        point = random.normal(size=2), random.normal(size=N)
        moved = function(*point)
        with SerialPool():
            assert_same_bits(moved, function(*point))
    kinds = [type(order).__name__ for _, order in move_always]
    # Every rank is told of the program once, and then of what changes.
    assert kinds.count("Define") == ranks() - 1
    assert (kinds.count("Transfer") > 0) == (ranks() > 1)


def test_maps_of_different_jobs_move_apart(move_always):
    theta = pt.dvector("theta", shape=(2,))
    many = map_rect(stacked, theta, np.ones(N), np.ones((N, 2)), grain_size=1).sum()
    few = map_rect(stacked, theta, np.ones(5), np.ones((5, 2)), grain_size=3).sum()
    function = pytensor.function([theta], [many + few, pt.grad(many + few, theta)])
    for scale in np.linspace(0.1, 2, 12):
        moved = function(np.full(2, scale))
        with SerialPool():
            assert_same_bits(moved, function(np.full(2, scale)))


def test_only_the_data_of_new_jobs_are_sent(move_always):
    theta = pt.dvector("theta", shape=(2,))
    held = np.arange(N * 2.0).reshape(N, 2)
    function = pytensor.function([theta], map_rect(stacked, theta, np.ones(N), held, grain_size=1))
    for scale in range(10):
        function(np.full(2, float(scale)))
    owned = {rank: set() for rank in range(1, ranks())}
    for rank, order in move_always:
        if isinstance(order, Layout):
            continue
        ((low, high),) = order.runs
        mine = set(range(low, high))
        if isinstance(order, Transfer):
            (gained,) = order.gained
            rows = [x for run in gained for x in run if x is not None and x.values.ndim == 2]
            sent = [j for x in rows for j in range(x.first, x.first + len(x))]
            assert sorted(sent) == sorted(mine - owned[rank])
        owned[rank] = mine
    assert ranks() == 1 or any(isinstance(order, Transfer) for _, order in move_always)


def test_costs_move_the_cuts(monkeypatch):
    """The rank with the expensive jobs gives the others away."""
    if ranks() == 1:
        pytest.skip("one rank has all jobs")

    @numeric_job(derivatives=None)
    def slow(theta, job):
        total = 0.0
        for i in range(int(job)):
            total += theta * i
        return total

    moves = []
    propose = Balance.propose

    def recording(self, *arguments):
        cuts = propose(self, *arguments)
        if cuts is not None:
            moves.append(cuts)
        return cuts

    monkeypatch.setattr(Balance, "propose", recording)
    costs = np.full(16, 20.0)
    costs[:4] = 25_000.0
    theta = pt.dscalar("theta")
    function = pytensor.function([theta], map_rect(slow, theta, costs))
    for i in range(40):
        function(float(i))
    assert moves
    assert moves[-1][1] <= 2
