"""Jobs that solve an ODE: the same bits on any ranks, failures counted, each job solved once."""

from contextlib import nullcontext

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import NullTypeGradError

from pymc_mpimap import Doses, MPIPool, SerialPool, current_pool, map_rect, solve_ivp
from tests.helpers import assert_close, compiled, in_modes

N_JOBS = 7
RANDOM = np.random.default_rng(5)
TIMES = [np.sort(RANDOM.uniform(0.5, 6.0, size=3 + j % 4)) for j in range(N_JOBS)]
SEEN = [RANDOM.normal(size=len(times)) for times in TIMES]
GIVEN = [np.arange(1 + j % 3) * 1.5 for j in range(N_JOBS)]


def subject(theta, job, x):
    """One compartment with absorption, some doses, some times: of each another number."""

    def rates(t, y, p):
        return [-p["ka"] * y[0], p["ka"] * y[0] - p["k"] * y[1]]

    y = solve_ivp(
        rates,
        0.0,
        [0.0, 0.0],
        x["times"],
        {"ka": pt.exp(theta[0]), "k": pt.exp(theta[1] + job)},
        method="tsit5",
        doses=Doses(x["doses"], 10.0),
    )
    return -((x["seen"] - y[:, 1]) ** 2).sum()


DATA = {"times": TIMES, "seen": SEEN, "doses": GIVEN}
POINT = (np.array([0.2, -1.0]), RANDOM.normal(size=N_JOBS) / 5)


def likelihood():
    theta, jobs = pt.dvector("theta", shape=(2,)), pt.dvector("jobs", shape=(N_JOBS,))
    total = map_rect(subject, theta, jobs, DATA).sum()
    return [total, *pt.grad(total, [theta, jobs])], [theta, jobs]


@in_modes("NUMBA", "FAST_COMPILE")
def test_same_bits_as_serially(mode):
    outputs, inputs = likelihood()
    assert np.isfinite(compiled(outputs, inputs)(*POINT)[0])


def test_same_result_as_without_map_rect():
    outputs, inputs = likelihood()
    theta, jobs = inputs
    plain = sum(
        subject(theta, jobs[j], {name: pt.as_tensor_variable(x[j]) for name, x in DATA.items()})
        for j in range(N_JOBS)
    )
    expected = compiled([plain, *pt.grad(plain, inputs)], inputs)(*POINT)
    for result, wanted in zip(compiled(outputs, inputs)(*POINT), expected, strict=True):
        assert_close(result, wanted, 1e-9)


def test_each_job_is_solved_once_for_value_and_gradient():
    outputs, inputs = likelihood()
    f = pytensor.function(inputs, outputs)
    # The first evaluation too, for which rank 0 compiles before it sends anything.
    for shift in (0.0, 0.1):
        before = current_pool().report().solves
        f(POINT[0] + shift, POINT[1])
        assert current_pool().report().solves - before == N_JOBS


def test_failed_solves_are_nan_and_in_the_report():
    theta, jobs = pt.dscalar("theta"), pt.dvector("jobs", shape=(4,))

    def explosion(theta, job):
        return solve_ivp(lambda t, y, k: k * y**2, 0.0, [1.0], [0.5, 2.0], theta * job).sum()

    each = map_rect(explosion, theta, jobs)
    f = pytensor.function([theta, jobs], [each, *pt.grad(each.sum(), [theta, jobs])])
    f(0.1, np.ones(4))
    before = current_pool().report()
    values, by_theta, by_job = f(1.0, np.array([0.1, 3.0, 0.2, 4.0]))
    after = current_pool().report()
    failed = np.array([False, True, False, True])
    assert np.array_equal(np.isnan(values), failed)
    assert np.array_equal(np.isnan(by_job), failed)
    assert np.isnan(by_theta)
    count = sum(after.failed_solves.values()) - sum(before.failed_solves.values())
    assert count == 2
    assert "solves failed" in str(after)
    assert np.isfinite(f(0.1, np.ones(4))[0]).all()
    # Where the values are only summed, jobs are solved again to find the failed ones.
    total = map_rect(explosion, theta, jobs, name="summed explosions", grain_size=2).sum()
    f = pytensor.function([theta, jobs], total)
    f(0.1, np.ones(4))
    before = current_pool().report()
    assert np.isnan(f(1.0, np.array([0.1, 3.0, 0.2, 4.0])))
    after = current_pool().report()
    assert after.solves - before.solves == 4
    assert sum(after.failed_solves.values()) - sum(before.failed_solves.values()) == 2
    odd = {name for name in after.not_finite if "summed explosions" in name}
    assert odd == {f"job {j} of summed explosions: nan" for j in (1, 3)}


def test_times_of_doses_that_are_asked_for_a_gradient_are_refused():
    times = pt.dmatrix("times", shape=(3, 2))

    def job(_, times):
        decay = solve_ivp(lambda t, y: -y, 0.0, [0.0], [5.0], doses=Doses(times, 1.0))
        return decay.sum()

    total = map_rect(job, None, times).sum()
    with pytest.raises(NullTypeGradError, match="times of doses"):
        pt.grad(total, times)


def starting_at_zero(theta, job, x):
    """Known: ``x = job t``, and the other state is the integral of ``x**h``."""

    def growing(t, y, p):
        gut, _ = y
        return [p["rate"], np.exp(p["h"] * np.log(gut))]

    y = solve_ivp(
        growing, 0.0, [0.0, 0.0], x, {"rate": job, "h": theta}, method="tsit5", rtol=1e-8, atol=1e-8
    )
    return y[:, 1].sum()


@in_modes("NUMBA", "FAST_COMPILE")
def test_a_power_below_1_of_a_state_that_starts_at_0(mode):
    theta, jobs = pt.dscalar("theta"), pt.dvector("jobs", shape=(N_JOBS,))
    total = map_rect(starting_at_zero, theta, jobs, TIMES).sum()
    h, rates = 0.8, np.linspace(0.5, 2.0, N_JOBS)
    outputs = compiled([total, *pt.grad(total, [theta, jobs])], [theta, jobs])(h, rates)
    parts = [r**h * t ** (h + 1) / (h + 1) for r, t in zip(rates, TIMES, strict=True)]
    by_h = [
        (z * (np.log(r * t) - 1 / (h + 1))).sum()
        for z, r, t in zip(parts, rates, TIMES, strict=True)
    ]
    sums = np.array([z.sum() for z in parts])
    for result, wanted in zip(outputs, (sums.sum(), sum(by_h), h * sums / rates), strict=True):
        assert_close(result, wanted, 1e-5)


def test_where_solves_fail_is_told_by_every_rank():
    """The names of states are those of the right-hand side, whichever rank met the fault."""
    theta, jobs = pt.dscalar("theta"), pt.dmatrix("jobs", shape=(4, 2))

    def infinite(theta, job):
        def named(t, y, h):
            depot, plasma = y
            return [1.0 - depot, depot**h - plasma]

        return solve_ivp(named, 0.0, job, [1.0], theta).sum()

    def empty(theta, job):
        def emptied(t, y, h):
            depot, plasma = y
            return [-1.0 * depot**h, 0.0 * plasma]

        return solve_ivp(emptied, 0.0, job, [9.0], theta, method="tsit5").sum()

    each = map_rect(infinite, theta, jobs)
    f = pytensor.function([theta, jobs], pt.grad(each.sum(), jobs))
    values = map_rect(empty, theta, jobs)
    g = pytensor.function([theta, jobs], values)
    start = np.array([[0.5, 1.0], [0.0, 1.0], [0.3, 0.0], [0.0, 2.0]])
    # Outside of a pool the report is of all that this process has ever solved.
    serial = not isinstance(current_pool(), MPIPool)
    with SerialPool() if serial else nullcontext(current_pool()) as pool:
        before = pool.report().failed_solves
        assert np.array_equal(np.isnan(f(0.8, start)), np.repeat(start[:, :1] == 0, 2, axis=1))
        assert np.isnan(g(0.8, start + 0.5)).all()
        after = pool.report().failed_solves
    reason = (
        "the derivative of the right-hand side is not finite where state depot is 0 "
        "(named, near t = 0)"
    )
    assert after[reason] - before.get(reason, 0) == 2
    told = [why for why in after if "emptied" in why]
    assert told
    assert all("the right-hand side was not finite" in why for why in told)
    assert all("state depot" in why for why in told)
