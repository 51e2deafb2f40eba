"""What goes wrong below a tree, is interrupted there, or counted: as without one."""

import signal
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, current_pool, local, map_rect, numeric_job
from pymc_mpimap.pool.balance import Balance
from pymc_mpimap.pool.line import Line
from pymc_mpimap.pool.link import Link
from tests.helpers import lay_out_anew
from tests.interrupting import interrupt_at_every_line
from tests.pools.trees import N, build, check, points, ranks, stacked


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
    for k in range(40):
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
