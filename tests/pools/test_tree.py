"""Many ranks reached through a tree: the same bits as without one."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.type import dvector

from pymc_mpimap import local, map_rect, numeric_job
from pymc_mpimap.blocks import Blocks
from pymc_mpimap.pool import tree
from pymc_mpimap.pool.assembly import assemblies, gatherings
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.protocol import Branch, Layout
from pymc_mpimap.pool.share import Share
from pymc_mpimap.signature import Slot
from tests.helpers import assert_same_bits, lay_out_anew
from tests.pools.trees import N, build, check, layouts, points, ranks, stacked

# The tree itself.


def described(part, parent, children):
    return Branch(part, parent, (), (), (), children)


@pytest.mark.parametrize("fan_out", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [0, 1, 2, 4, 5, 16, 63, 255])
def test_branches_are_consecutive_ranks(monkeypatch, n, fan_out):
    monkeypatch.setattr(tree, "FAN_OUT", fan_out)
    every = tuple(range(3, 3 + 2 * n, 2))
    trees = tree.branches(every, described)
    assert sorted(tree.all_of(trees)) == list(every)

    def visit(branches, parent, within):
        assert len(branches) <= fan_out
        assert sum((branch.ranks for branch in branches), ()) == within
        sizes = [len(branch.ranks) for branch in branches]
        assert sizes == sorted(sizes, reverse=True)
        assert not sizes or sizes[0] - sizes[-1] <= 1
        for branch in branches:
            assert branch.parent == parent
            visit(branch.children, branch.ranks[0], branch.ranks[1:])

    visit(trees, 0, every)


def test_few_ranks_need_no_tree():
    assert not tree.pays(16)
    assert tree.pays(17)


@pytest.mark.parametrize("fan_out", [1, 2, 4])
@pytest.mark.parametrize("n_blocks", [1, 7, 64, 100])
@pytest.mark.parametrize("n_ranks", [2, 5, 33])
def test_sums_through_a_tree_have_the_same_bits(monkeypatch, n_ranks, n_blocks, fan_out):
    """A simulation: the answers of all ranks of trees that nobody has the cores for."""
    monkeypatch.setattr(tree, "FAN_OUT", fan_out)
    random = np.random.default_rng(n_ranks * n_blocks)
    slots = [Slot(dvector, False), Slot(dvector, True)]
    m = SimpleNamespace(
        blocks=Blocks(2 * n_blocks - 1, 2), n_jobs=2 * n_blocks - 1, job=SimpleNamespace()
    )
    m.job.outputs = slots
    sums, jobs = random.normal(size=(n_blocks, 3)), random.normal(size=(m.n_jobs, 2))
    inner = random.integers(0, n_blocks + 1, size=n_ranks - 1)
    cuts = [0, *sorted(inner.tolist()), n_blocks]

    def alone(low, high):
        """Return what one rank with these blocks answers."""
        share = Share(m, low, high)
        leaves = [Share(m, block, block + 1) for block in range(low, high)]
        results = [
            [sums[leaf.low : leaf.high].copy(), jobs[leaf.first : leaf.last]] for leaf in leaves
        ]
        places = [np.empty((len(share.subtrees), 3)), np.empty((share.last - share.first, 2))]
        if leaves:
            for gather in gatherings(share, leaves, results, places):
                gather()
        return share, places

    def answer(branch):
        """Return what a branch answers."""
        first, last = branch.ranks[0], branch.ranks[-1]
        parts = [alone(*cuts[first : first + 2]), *(answer(child) for child in branch.children)]
        whole = Share(m, cuts[first], cuts[last + 1])
        places = [np.empty((len(whole.subtrees), 3)), np.empty((whole.last - whole.first, 2))]
        shares, results = zip(*parts, strict=True)
        for gather in gatherings(whole, shares, results, places):
            gather()
        expected = alone(cuts[first], cuts[last + 1])[1]
        assert_same_bits(places, expected)
        return whole, places

    parts = [alone(*cuts[:2]), *map(answer, tree.branches(range(1, n_ranks), described))]
    shares, results = zip(*parts, strict=True)
    together = [assemble() for assemble in assemblies(m, shares, results)]
    share, places = alone(0, n_blocks)
    assert_same_bits(together, [a() for a in assemblies(m, [share], [places])])
    assert_same_bits(together[1], jobs)


def test_ranks_stand_in_a_tree(grown):
    check(build(1.0, grain_size=1), *points(2))
    told = layouts(grown.orders)
    assert sorted(told) == list(range(1, ranks()))
    for rank, layout in told.items():
        assert layout.branch.ranks[0] == rank
        assert len(layout.branch.children) <= grown.fan_out
    if ranks() == 5:
        parents = {rank: layout.branch.parent for rank, layout in told.items()}
        assert (
            parents
            == {
                1: {1: 0, 2: 1, 3: 2, 4: 3},
                2: {1: 0, 2: 1, 3: 0, 4: 3},
                3: {1: 0, 2: 1, 3: 0, 4: 0},
            }[grown.fan_out]
        )


def test_few_ranks_are_reached_without(monkeypatch):
    orders = []
    order = Link.order
    monkeypatch.setattr(Link, "order", lambda *a: (orders.append(a[2]), order(*a)))
    lay_out_anew()
    check(build(2.0), *points(2))
    assert all(order.branch is None for order in orders if isinstance(order, Layout))


# Results.


@pytest.mark.parametrize("grain_size", [1, 2, 5, 12])
def test_values_and_gradients(grown, grain_size):
    check(build(3.0, grain_size=grain_size), *points(4))


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_fewer_jobs_than_ranks(grown, n):
    check(build(4.0, n, grain_size=1), *points(3, n))
    told = layouts(grown.orders).values()
    in_the_tree = {rank for layout in told for rank in layout.branch.ranks}
    cuts = Balance(n, ranks()).cuts
    assert in_the_tree == {r for r, (a, b) in enumerate(pairwise(cuts)) if r > 0 and a < b}


def test_several_maps_of_different_jobs(grown):
    theta = pt.dvector("theta", shape=(2,))
    random = np.random.default_rng(5)
    outputs = [
        map_rect(stacked, theta, random.normal(size=n), random.normal(size=(n, 2)), grain_size=k)
        for n, k in [(N, 1), (2, 1), (0, 1), (11, 3)]
    ]
    total = sum(output.sum() for output in outputs)
    function = pytensor.function([theta], [*outputs, total, pt.grad(total, theta)])
    check(function, *[(random.normal(size=2),) for _ in range(3)])


def ragged(theta, job, x):
    return theta.sum() * pt.exp(job).sum() + (x**2).sum()


def load(job):
    return np.arange(job + 1.0)


@pytest.mark.parametrize("data", ["ragged", "local"])
def test_ragged_inputs_and_outputs(grown, data):
    lengths = [j % 4 for j in range(N)]
    flat, theta = pt.dvector("flat"), pt.dvector("theta", shape=(2,))
    ends = np.cumsum(lengths)
    own = [flat[end - k : end] for end, k in zip(ends.tolist(), lengths, strict=True)]
    own = [pt.specify_shape(x, (k,)) for x, k in zip(own, lengths, strict=True)]
    held = (
        [np.arange(j % 3 + 0.5) for j in range(N)]
        if data == "ragged"
        else local(load, like=np.empty(0))
    )
    values = map_rect(ragged, theta, own, held, grain_size=2)
    total = (values**2).sum()
    function = pytensor.function([theta, flat], [values, *pt.grad(total, [theta, flat])])
    random = np.random.default_rng(6)
    check(function, *[(random.normal(size=2), random.normal(size=sum(lengths))) for _ in range(3)])


@numeric_job
def with_objects(theta, job, x):
    return float(theta.sum() * job + len(x)), np.full(2, job), theta.sum()


def test_objects(grown):
    theta, jobs = pt.dvector("theta", shape=(2,)), pt.dvector("jobs", shape=(N,))
    values = map_rect(with_objects, theta, jobs, ["x" * (j % 5) for j in range(N)], grain_size=2)
    function = pytensor.function([theta, jobs], [values, *pt.grad(values.sum(), [theta, jobs])])
    check(function, *points(3))


def test_changed_inputs_only_and_data(grown):
    """Large and small, shared and by job: what did not change is what it was, on every rank."""
    random = np.random.default_rng(7)
    by_job = pytensor.shared(random.normal(size=(N, 400)), name="by_job")
    shared = pytensor.shared(random.normal(size=400), name="shared")
    theta, jobs = pt.dvector("theta", shape=(2,)), pt.dvector("jobs", shape=(N,))

    def f(theta, job, x):
        return theta.sum() * job[0] * (job[1:] * shared).sum() + x

    both = pt.concatenate([jobs[:, None], by_job], axis=1)
    values = map_rect(f, theta, both, np.arange(float(N)), grain_size=1)
    function = pytensor.function([theta, jobs], [values, *pt.grad(values.sum(), [theta, jobs])])
    point = points(1)[0]
    check(function, point, point)
    for job in [0, N // 2, N - 1]:
        by_job.get_value(borrow=True)[job, 7] += 1.0
        check(function, point)
        point[1][job] += 1.0
        check(function, point)
    shared.get_value(borrow=True)[3] += 1.0
    check(function, point)
    point[0][:] += 1.0
    check(function, point, *points(2))


def test_shapes_that_change(grown):
    """A longer vector than any before: buffers grow, for other programs too."""
    theta = pt.dvector("theta")
    total = map_rect(
        lambda theta, job: (theta**2).sum() * job, theta, np.arange(1.0, N + 1), grain_size=1
    ).sum()
    function = pytensor.function([theta], [total, pt.grad(total, theta)])
    other = build(8.0, grain_size=1)
    for size in (3, 5000, 2, 30_000):
        check(function, (np.linspace(0, 1, size),), (np.linspace(1, 2, size),))
        check(other, *points(2))


@pytest.mark.parametrize("trees", ["all", "some"])
def test_moved_cut_points(grown, monkeypatch, trees):
    """Each evaluation is followed by a move; ranks come into the tree and leave it."""
    random = np.random.default_rng(8)

    def propose(self, costs, moving=0.0):
        inner = random.integers(0, self.n_blocks + 1, size=self.n_ranks - 1)
        self.cuts = [0, *sorted(inner.tolist()), self.n_blocks]
        return self.cuts

    monkeypatch.setattr(Balance, "wants_costs", lambda *_: True)
    monkeypatch.setattr(Balance, "propose", propose)
    if trees == "some":
        monkeypatch.setattr(tree, "FLAT", 3)
    one, other = build(9.0, grain_size=1), build(9.0, 11, grain_size=2)
    for mine, its in zip(points(15), points(15, 11), strict=True):
        check(one, mine)
        check(other, its)
