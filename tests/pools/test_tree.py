"""Many ranks reached through a tree: the same bits, errors and reports as without one."""

import signal
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.type import dvector

from pymc_mpimap import JobError, SerialPool, current_pool, local, map_rect, numeric_job
from pymc_mpimap.blocks import Blocks
from pymc_mpimap.pool import tree
from pymc_mpimap.pool.assembly import assemblies, gatherings
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.line import Line
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.protocol import Branch, Layout
from pymc_mpimap.pool.share import Share
from pymc_mpimap.signature import Slot
from tests.helpers import assert_same_bits, lay_out_anew
from tests.interrupting import interrupt_at_every_line

N = 23


def ranks():
    """Return how many ranks work: one under a serial pool."""
    return getattr(current_pool(), "ranks", 1)


@pytest.fixture(params=[1, 2, 3])
def grown(request, monkeypatch):
    """Reach all ranks through a tree of this fan-out; yield what was sent off the hot path."""
    if ranks() < 3:
        pytest.skip("a tree takes three ranks")
    orders = []
    order = Link.order

    def recording_order(self, number, what, *known):
        orders.append((self.rank, what))
        order(self, number, what, *known)

    with monkeypatch.context() as patch:
        patch.setattr(tree, "FLAT", 1)
        patch.setattr(tree, "FAN_OUT", request.param)
        patch.setattr(Link, "order", recording_order)
        patch.setattr(Balance, "wants_costs", lambda *_: False)
        lay_out_anew()
        yield SimpleNamespace(orders=orders, fan_out=request.param)
    lay_out_anew()


def layouts(orders):
    """Return the last layout that each rank was sent."""
    return {rank: order for rank, order in orders if isinstance(order, Layout)}


def check(function, *points):
    for point in points:
        result = function(*point)
        with SerialPool():
            assert_same_bits(result, function(*point))


def stacked(theta, job, x):
    return theta.sum() * job + pt.exp(-((x * theta) ** 2)).sum()


def build(scale, n=N, **options):
    """Return a function of shared and per-job inputs: values and gradients."""
    theta, jobs = pt.dvector("theta", shape=(2,)), pt.dvector("jobs", shape=(n,))
    held = scale * np.random.default_rng(n).normal(size=(n, 2))
    values = map_rect(stacked, theta, jobs, held, **options)
    total = values.sum()
    return pytensor.function([theta, jobs], [values, total, *pt.grad(total, [theta, jobs])])


def points(number, n=N):
    random = np.random.default_rng(3)
    return [(random.normal(size=2), random.normal(size=n)) for _ in range(number)]


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


# What goes wrong.


@numeric_job(derivatives=None)
def fragile(theta, job, x):
    if theta == job:
        raise ValueError("gave up " + "x" * 20_000)
    return theta * job + x


def fragile_function(scale, **options):
    theta = pt.dscalar("theta")
    return pytensor.function(
        [theta], map_rect(fragile, theta, np.arange(N) + 0.0, scale * np.ones(N), **options)
    )


def owner(job, n=N):
    """Return which rank has a job, where blocks are single jobs."""
    cuts = Balance(n, ranks()).cuts
    return next(r for r, (low, high) in enumerate(pairwise(cuts)) if low <= job < high)


def owner_ends():
    """Return for each rank the job after its last."""
    return Balance(N, ranks()).cuts[1:]


def test_job_that_raises(grown):
    function = fragile_function(10.0, grain_size=1)
    check(function, (0.5,))
    for job in range(N):
        with pytest.raises(JobError) as caught:
            function(float(job))
        failure = caught.value.failure
        assert (failure.job, failure.rank) == (job, owner(job))
        assert failure.exception.startswith("ValueError: gave up")
        check(function, (job + 0.5,))


@numeric_job(derivatives=None)
def late(theta, job):
    if job >= theta:
        raise ValueError("late")
    return theta * job


def test_the_first_of_many_errors(grown):
    theta = pt.dscalar("theta")
    function = pytensor.function([theta], map_rect(late, theta, np.arange(N) + 0.0, grain_size=1))
    for job in (20, 11, 5, 0, 17):
        with pytest.raises(JobError) as caught:
            function(float(job))
        assert caught.value.failure.job == job
    check(function, (float(N),))


def test_the_first_of_errors_in_two_maps(grown):
    """The lower job is on the later rank, below the other in a chain."""
    if ranks() < 3:
        pytest.skip("both jobs are on one rank")
    theta = pt.dscalar("theta")
    few = map_rect(fragile, theta, np.arange(4.0) + 6.0, np.ones(4), grain_size=1)
    jobs = np.where(np.arange(N) == owner_ends()[1] - 1, 9.0, 1.0)
    many = map_rect(fragile, theta, jobs, np.full(N, 2.0), grain_size=1)
    function = pytensor.function([theta], many.sum() + few.sum())
    for _ in range(2):
        with pytest.raises(JobError) as caught:
            function(9.0)
        assert (caught.value.failure.job, caught.value.failure.rank) == (3, ranks() - 1)
        check(function, (0.5,))


def test_job_that_is_rejected(grown):
    function = fragile_function(11.0, grain_size=1, on_error="reject", name="fragile in a tree")
    for job in range(N):
        check(function, (float(job),), (job + 0.5,))
    rejected = current_pool().report().rejected
    mine = {name: times for name, times in rejected.items() if "fragile in a tree" in name}
    assert ranks() == 1 or set(mine) == {f"job {job} of fragile in a tree" for job in range(N)}
    for job in range(N):
        function(float(job))
    again = current_pool().report().rejected
    assert all(again[name] == times + 1 for name, times in mine.items())


def loads_where_it_can(job):
    import os

    if os.environ.get("PYMC_MPIMAP_TEST") != "there" and job == N - 2:
        raise OSError("no such file")
    return np.ones(2)


def test_data_that_cannot_be_loaded(grown):
    theta = pt.dvector("theta", shape=(2,))
    data = local(loads_where_it_can, like=np.empty(2))
    function = pytensor.function([theta], map_rect(stacked, theta, np.ones(N), data, grain_size=1))
    for _ in range(3):
        with pytest.raises(JobError, match=r"OSError: no such file") as caught:
            function(np.ones(2))
        assert caught.value.failure.rank == owner(N - 2)
    check(build(12.0), *points(2))


class OnlyOn:
    """What some ranks cannot unpickle."""

    def __init__(self, bad):
        self.bad = bad

    def __reduce__(self):
        return _only_on, (self.bad,)


def _only_on(bad):
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank in bad:
        raise RuntimeError("cannot be unpickled here")
    return OnlyOn(bad)


@pytest.mark.parametrize("bad", [[1], [2], [3], [1, 2], [4]])
def test_rank_that_cannot_take_part(grown, bad):
    """A head that knows no more than that it failed answers for all below it."""
    if max(bad) >= ranks():
        pytest.skip("there is no such rank")
    spoilt, theta = OnlyOn(bad), pt.dscalar("theta")

    @numeric_job(derivatives=None)
    def f(theta, job):
        return theta * job if spoilt.bad else 0.0

    function = pytensor.function([theta], map_rect(f, theta, np.ones(N), grain_size=1))
    for k in range(3):
        with pytest.raises(JobError, match="cannot be unpickled here") as caught:
            function(float(k))
        assert caught.value.failure.rank in bad
    check(build(13.0), *points(2))


# Ctrl-C.


@pytest.mark.parametrize("fresh", [False, True])
def test_interrupted_at_any_line(grown, fresh):
    """Also while the ranks are told of the tree."""
    theta = pt.dvector("theta", shape=(3,))
    held = np.arange(36.0).reshape(12, 3)
    function = pytensor.function(
        [theta], map_rect(lambda t, job, x: (t * x).sum(), theta, 12, held, grain_size=1)
    )
    forgetting = {"before": lay_out_anew, "step": 7} if fresh else {}
    assert interrupt_at_every_line(function, 3, held.sum(axis=1), **forgetting) > 30


def test_interrupted_before_another_tree(grown, monkeypatch):
    """What is still going on in one tree does not meet what goes on in the next."""
    one, other = build(14.0, grain_size=1), build(14.0, 3, grain_size=1)
    check(one, *points(1))
    check(other, *points(1, 3))
    start, send = Link.start, Line.send
    mine, its = points(12), points(12, 3)
    for k in range(12):
        struck = []

        def starting(self, request, struck=struck):
            if not struck:
                # As if it struck right after the message was started, before that was noted.
                struck.append(self.rank)
                self._sending = request
                request.Start()
                signal.raise_signal(signal.SIGINT)
            start(self, request)

        def sending(*arguments, struck=struck):
            send(*arguments)
            if not struck:
                struck.append(arguments[0].link.rank)
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            if k % 3:
                patch.setattr(Line, "send", sending)
            else:
                patch.setattr(Link, "start", starting)
            if ranks() > 1:
                with pytest.raises(KeyboardInterrupt):
                    one(*mine[k])
        if k % 2:
            lay_out_anew()
        check(other, its[k])
        check(one, mine[k])


# Reports.


def test_busy_time_of_each_rank(grown):
    @numeric_job(derivatives=None)
    def slow(theta, job):
        from time import perf_counter

        end = perf_counter() + 2e-3 * job
        while perf_counter() < end:
            pass
        return theta * job

    theta, costs = pt.dscalar("theta"), np.zeros(ranks())
    costs[-1] = 1.0
    function = pytensor.function([theta], map_rect(slow, theta, costs, grain_size=1))
    function(0.0)
    busy = [current_pool().report().busy]
    for k in range(10):
        check(function, (float(k),))
        busy.append(current_pool().report().busy)
    # The least of each rank: any may have been kept from its core for a while.
    least = np.diff(busy, axis=0).min(axis=0)
    assert len(least) == ranks()
    assert np.argmax(least) == ranks() - 1
    assert least[-1] >= 2e-3 * (1 - 1e-9)


@pytest.mark.parametrize("fails_on", [None, 0, 1, 2, 4])
def test_what_is_counted_on_all_ranks(grown, fails_on):
    """Also where the last job of a rank fails: the others are waited for, and counted."""
    if fails_on is not None and fails_on >= ranks():
        pytest.skip("there is no such rank")

    @numeric_job(derivatives=None)
    def counting(theta, job):
        # Imported where it runs: what a function refers to is else sent as a copy.
        from time import sleep

        from pymc_mpimap.tally import TALLY

        TALLY[0] += 1
        TALLY[1] += int(job) % 2
        if job == theta:
            raise ValueError("failed")
        sleep(1e-4)
        return theta * job

    bad = -1.0 if fails_on is None else owner_ends()[fails_on] - 1.0
    theta = pt.dscalar("theta")
    function = pytensor.function(
        [theta], map_rect(counting, theta, np.arange(N) + 0.0, grain_size=1)
    )
    for value in (-1.0, bad, bad, -1.0):
        before = current_pool().report()
        with nullcontext() if value < 0 else pytest.raises(JobError):
            function(value)
        after = current_pool().report()
        assert after.solves - before.solves == N
        assert sum(after.failed_solves.values()) - sum(before.failed_solves.values()) == N // 2
