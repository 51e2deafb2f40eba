"""Jobs that raise: what is said, and that the pool goes on."""

import socket
import sys

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import pushforward
from pytensor.raise_op import Assert

from pymc_mpimap import JobError, SerialPool, current_pool, map_rect, numeric_job
from tests.helpers import assert_same_bits, evaluate, in_modes, ranks, rejects

pytestmark = rejects

N = 7


class UnpicklableError(Exception):
    """An exception that can be neither pickled nor made again from its arguments."""

    def __init__(self, one, two):
        super().__init__("cannot travel")
        self.lock = sys._getframe()


def raising(make):
    """Return a numeric job that raises where its data say so."""

    @numeric_job
    def fragile(theta, job, bad):
        if bad:
            raise make()
        return theta * job, job, theta

    return fragile


def value_error():
    return ValueError("the solver gave up")


def traced(theta, job, bad):
    return Assert("the solver gave up")(theta * job, pt.eq(bad, 0))


def build(job, bad, **options):
    """Return a function of whether each job is bad: value and gradients."""
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    flags = pt.lvector("bad", shape=(N,))
    output = map_rect(job, theta, own, flags, **options)
    outputs = [output, *pt.grad(output.sum(), [theta, own])]
    function = pytensor.function([theta, own, flags], outputs)
    return lambda bad: function(2.0, np.arange(1.0, N + 1), np.isin(np.arange(N), bad).astype(int))


GOOD = [2 * np.arange(1.0, N + 1), np.array(28.0), np.full(N, 2.0)]


@pytest.mark.parametrize("bad", [[0], [3], [N - 1], [2, 5], list(range(N))])
@pytest.mark.parametrize("grain_size", [1, 3])
def test_numeric_job_that_raises(bad, grain_size):
    function = build(raising(value_error), bad, grain_size=grain_size)
    assert_same_bits(function([]), GOOD)
    with pytest.raises(JobError) as caught:
        function(bad)
    failure = caught.value.failure
    assert failure.job in bad
    # In one process the jobs run in order, and so the first is met first.
    assert ranks() > 1 or failure.job == bad[0]
    assert 0 <= failure.rank < ranks()
    assert failure.host == socket.gethostname()
    assert failure.exception == "ValueError: the solver gave up"
    assert "raise make()" in failure.traceback
    message = str(caught.value)
    where = f"job {failure.job} of fragile, on rank {failure.rank} ({failure.host})"
    assert message.startswith(f"{where}: ValueError: the solver gave up")
    assert "on_error='reject'" in message
    assert_same_bits(function([]), GOOD)


@in_modes("FAST_COMPILE", "NUMBA")
def test_traced_job_that_raises():
    function = build(traced, [3], name="my job", grain_size=4)
    assert_same_bits(function([]), GOOD)
    with pytest.raises(
        JobError, match=r"job 3 of my job, on rank .*: AssertionError: the solver gave up"
    ):
        function([3])
    assert_same_bits(function([]), GOOD)


@pytest.mark.parametrize(
    ("make", "exception"),
    [
        (lambda: SystemExit(3), "SystemExit: 3"),
        (lambda: UnpicklableError(1, 2), "UnpicklableError: cannot travel"),
        (ZeroDivisionError, "ZeroDivisionError"),
        (lambda: StopIteration(1), "StopIteration: 1"),
        (lambda: MemoryError("9 TiB"), "MemoryError: 9 TiB"),
        (lambda: ValueError("\N{GREEK SMALL LETTER THETA}" * 5), "ValueError: θθθθθ"),
        (lambda: ValueError("x" * 100_000), "ValueError: xxx"),
    ],
    ids=["exit", "unpicklable", "empty", "stop", "memory", "unicode", "long"],
)
@pytest.mark.parametrize("bad", [0, N - 1])
def test_odd_exceptions(make, exception, bad):
    function = build(raising(make), [bad])
    with pytest.raises(JobError) as caught:
        function([bad])
    assert caught.value.failure.job == bad
    assert exception in caught.value.failure.exception
    assert_same_bits(function([]), GOOD)


@pytest.mark.parametrize("job", ["numeric", "traced"])
@pytest.mark.parametrize("bad", [[0], [1, 4], list(range(N))])
@pytest.mark.parametrize("grain_size", [1, 3])
def test_reject(job, bad, grain_size):
    f = raising(value_error) if job == "numeric" else traced
    function = build(f, bad, on_error="reject", grain_size=grain_size, name="rejected")
    good = np.setdiff1d(np.arange(N), bad)
    for _ in range(2):
        assert_same_bits(function([]), GOOD)
        value, d_theta, d_own = function(bad)
        assert np.array_equal(value[bad], np.full(len(bad), -np.inf))
        assert_same_bits(value[good], GOOD[0][good])
        assert_same_bits(d_theta, np.array((good + 1.0).sum()))
        assert_same_bits(d_own, np.where(np.isin(np.arange(N), bad), 0.0, 2.0))


def test_reject_of_vectors():
    """-inf in every entry, of jobs of different lengths."""

    @numeric_job(length=lambda bad, k: k)
    def vector(theta, job, bad, k):
        if bad:
            raise value_error()
        return np.full(k, theta), np.ones(k)

    theta, flags = pt.dscalar("theta"), pt.lvector("bad", shape=(4,))
    output = map_rect(vector, theta, 4, flags, np.array([2, 3, 0, 1]), on_error="reject")
    results = evaluate(
        [output, pt.grad(output.sum(), theta)], {theta: 2.0, flags: np.array([0, 1, 0, 0])}
    )
    inf = -np.inf
    assert_same_bits(results, [np.array([2, 2, inf, inf, inf, 2]), np.array(3.0)])


def test_reject_of_a_pushforward():
    """A derivative of a rejected job is zero, by whichever way it is asked for."""
    theta, flags = pt.dscalar("theta"), pt.lvector("bad", shape=(N,))
    own = np.arange(1.0, N + 1)
    output = map_rect(raising(value_error), theta, own, flags, on_error="reject")
    tangent = pushforward(output, [theta], [pt.constant(3.0, dtype="float64")])
    result = evaluate(tangent, {theta: np.array(2.0), flags: np.eye(N, dtype=int)[4]})
    assert_same_bits(result, np.where(np.arange(N) == 4, 0.0, 3 * own))


def test_report_counts_what_was_rejected():
    before = current_pool().report()
    name = "my model"
    function = build(raising(value_error), [], on_error="reject", name=name)
    for bad in ([], [2], [2, 5], [2]):
        function(bad)
    after = current_pool().report()
    counts = {k: v for k, v in after.rejected.items() if k not in before.rejected}
    assert counts == {"job 2 of my model": 3, "job 5 of my model": 1}
    assert [str(reason) for reason in after.reasons if reason.function == name] == [
        "4 times: jobs 2 (3 times) and 5 (once) of my model: ValueError: the solver gave up"
    ]
    assert after.evaluations - before.evaluations == 4


def test_a_fresh_report_has_nothing_to_tell():
    report = SerialPool().report()
    assert (report.evaluations, report.rejected, report.seconds) == (0, {}, 0)
    assert "0 evaluations on 1 rank," in str(report)


def test_job_error_travels():
    """Between processes, as when a chain of its own process fails."""
    import pickle

    function = build(raising(value_error), [1])
    with pytest.raises(JobError) as caught:
        function([1])
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is JobError
    assert again.failure == caught.value.failure


def test_keyboard_interrupt_is_no_failure_of_a_job():
    """The user's Ctrl-C ends the evaluation as itself, and is not a rejected proposal."""

    @numeric_job(derivatives=None)
    def interrupted(theta, job):
        raise KeyboardInterrupt

    with SerialPool() as pool:
        output = map_rect(interrupted, None, N, on_error="reject")
        with pytest.raises(KeyboardInterrupt):
            output.eval()
        assert pool.report().rejected == {}


def test_reject_of_one_map_leaves_another_alone():
    """Also where both are over the same jobs, in the same blocks."""
    theta = pt.dscalar("theta")

    def fails(theta, job):
        return Assert("no")(theta * job, pt.neq(job, 2.0))

    jobs, options = np.array([1.0, 2.0, 3.0]), {"on_error": "reject", "grain_size": 3}
    first = map_rect(fails, theta, jobs, **options)
    second = map_rect(lambda theta, job: theta + job, theta, jobs, **options)
    total = first.sum() + second.sum()
    result = evaluate([first, second, pt.grad(total, theta)], {theta: 1.0})
    assert_same_bits(result, [np.array([1.0, -np.inf, 3.0]), jobs + 1, np.array(4.0 + 3.0)])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["nutpie", "nutpie by JAX", "a function by JAX"])
@pytest.mark.parametrize("bad", [0, N - 1])
# ArviZ finds more chains than draws where a run has just begun.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_error_of_any_rank_reaches_the_user_past_a_sampler(way, bad):
    """Each time, and the ranks go on: compiled code takes an exception for a bad proposal."""
    import pymc as pm

    @numeric_job
    def fragile(mu, job):
        if job == bad and mu > 1:
            raise ZeroDivisionError
        return -0.5 * (mu - 3) ** 2, 3 - mu

    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10, initval=0.5)
        pm.Potential("y", map_rect(fragile, mu, np.arange(float(N))).sum())
    if way.startswith("nutpie"):
        import nutpie

        compiled = nutpie.compile_pymc_model(model, backend="jax" if "JAX" in way else "numba")
        options = {"chains": 2, "cores": 2, "draws": 200, "tune": 100, "progress_bar": False}

        def run(seed):
            nutpie.sample(compiled, seed=seed, **options)
    else:
        logp = model.compile_logp(mode="JAX")

        def run(seed):
            logp({"mu": np.array(1.0 + seed)})

    for seed in (1, 2):
        with pytest.raises(JobError, match="ZeroDivisionError") as caught:
            run(seed)
        failure = caught.value.failure
        assert (failure.job, failure.rank) == (bad, 0 if bad == 0 else ranks() - 1)
        value = model.compile_logp()({"mu": np.array(1.0)})
        assert value == pytest.approx(-0.5 * 4 * N - 0.005 - np.log(10 * np.sqrt(2 * np.pi)))
