"""Values and gradients equal Stan's."""

import numpy as np
import pytensor.tensor as pt
import pytest
from scipy.integrate import solve_ivp

import pymc_mpimap
from pymc_mpimap import map_rect, numeric_job
from tests import workloads
from tests.helpers import evaluate


def shard(theta, job, data):
    eta = theta[0] + data["X"] @ theta[1:]
    return (data["y"] * eta - pt.softplus(eta)).sum()


def test_logistic_regression():
    w = workloads.w1()
    theta = pt.dvector("theta")
    total = map_rect(shard, theta, len(w.data["y"]), w.data).sum()
    value, gradient = evaluate([total, pt.grad(total, theta)], {theta: w.theta0})
    np.testing.assert_allclose(value, w.value, rtol=1e-9)
    np.testing.assert_allclose(gradient, w.gradient, rtol=1e-9)


@numeric_job
def subject(theta, job, data):
    """Solve for the states and their derivatives with respect to four log rates, together."""
    (beta, delta, sigma), (alpha, gamma) = np.exp(theta), np.exp(job)
    times, y = data["times"], data["y"]

    def rates(t, state):
        prey, predators = z = state[:2]
        rate = np.array([alpha - beta * predators, -gamma + delta * prey]) * z
        jacobian = np.array(
            [
                [alpha - beta * predators, -beta * prey],
                [delta * predators, -gamma + delta * prey],
            ]
        )
        # One column for each of log beta, log delta, log alpha and log gamma.
        direct = np.array(
            [
                [-beta * predators * prey, 0, alpha * prey, 0],
                [0, delta * prey * predators, 0, -gamma * predators],
            ]
        )
        return np.concatenate([rate, (jacobian @ state[2:].reshape(2, 4) + direct).ravel()])

    start = np.concatenate([data["start"], np.zeros(8)])
    solution = solve_ivp(
        rates, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-10, atol=1e-10
    ).y.T
    states, sensitivities = solution[:, :2], solution[:, 2:].reshape(-1, 2, 4)
    residuals = (np.log(y) - np.log(states)) / sigma
    value = (-0.5 * residuals**2 - np.log(y) - np.log(sigma) - 0.5 * np.log(2 * np.pi)).sum()
    d_rates = np.einsum("tk,tkp->p", residuals / sigma / states, sensitivities)
    d_sigma = (residuals**2 - 1).sum()
    return value, np.array([*d_rates[:2], d_sigma]), d_rates[2:]


def solved_subject(theta, job, data):
    """Solve the same system in compiled code."""
    rates = pt.exp(pt.stack([job[0], theta[0], job[1], theta[1]]))

    def rhs(t, y, p):
        alpha, beta, gamma, delta = p
        return [(alpha - beta * y[1]) * y[0], (-gamma + delta * y[0]) * y[1]]

    options = {"method": "tsit5", "rtol": 1e-10, "atol": 1e-10}
    states = pymc_mpimap.solve_ivp(rhs, 0.0, data["start"], data["times"], rates, **options)
    residuals = (pt.log(data["y"]) - pt.log(states)) / pt.exp(theta[2])
    constants = -pt.log(data["y"]) - theta[2] - 0.5 * np.log(2 * np.pi)
    return (-0.5 * residuals**2 + constants).sum()


@pytest.mark.parametrize("subject", [subject, solved_subject], ids=["scipy", "solve_ivp"])
def test_lotka_volterra(subject):
    w = workloads.w3a()
    n_jobs = len(w.data["y"])
    theta, jobs = pt.dvector("theta", shape=(3,)), pt.dmatrix("jobs", shape=(n_jobs, 2))
    data = {**w.data, "times": np.tile(w.data["times"], (n_jobs, 1))}
    total = map_rect(subject, theta, jobs, data).sum()
    value, d_theta, d_jobs = evaluate(
        [total, *pt.grad(total, [theta, jobs])],
        {theta: w.theta0[:3], jobs: w.theta0[3:].reshape(n_jobs, 2)},
    )
    np.testing.assert_allclose(value, w.value, rtol=1e-6)
    gradient = np.concatenate([d_theta, d_jobs.ravel()])
    # Stan's own gradient is off by the error of its solver, relative to the largest entry.
    tolerance = 1e-6 * np.abs(w.gradient).max()
    np.testing.assert_allclose(gradient, w.gradient, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("kind", ["traced", "numeric"])
def test_hello(kind):
    def traced(theta, job):
        return job[0] + job[1] ** 2

    @numeric_job
    def numeric(theta, job):
        return job[0] + job[1] ** 2, None, np.array([1, 2 * job[1]])

    w = workloads.w4()
    jobs = pt.dmatrix("jobs", shape=w.theta0.shape)
    total = map_rect(traced if kind == "traced" else numeric, None, jobs).sum()
    value, gradient = evaluate([total, pt.grad(total, jobs)], {jobs: w.theta0})
    assert value == w.value
    assert np.array_equal(gradient.ravel(), w.gradient)
