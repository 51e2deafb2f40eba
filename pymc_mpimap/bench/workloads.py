"""The models that are timed, with data made here from fixed seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap.api import map_rect
from pymc_mpimap.job.derivatives import numeric_job
from pymc_mpimap.ode.solve import solve_ivp

__all__ = [
    "Workload",
    "big_jobs",
    "big_shared",
    "cheap",
    "cheap_data",
    "lotka_volterra",
    "lotka_volterra_data",
    "nothing",
    "shard",
    "shards",
    "shards_data",
    "spinning",
    "subject",
    "value_and_gradient",
]


@dataclass(frozen=True)
class Workload:
    """A function that returns a value and its gradient, and where to call it.

    Attributes
    ----------
    function : callable
        By `map_rect`.
    point : list of array
    plain : callable or None
        The same without `map_rect`.
    down, up : callable
        How many doubles a worker must be sent and must return at least, by the number of ranks.
    """

    function: Callable[..., Any]
    point: list[np.ndarray]
    plain: Callable[..., Any] | None
    down: Callable[[int], int]
    up: Callable[[int], int]


def value_and_gradient(inputs: list[Any], total: Any) -> Callable[..., Any]:
    """Compile a scalar and its gradient."""
    gradient: Any = pt.grad(total, inputs)
    outputs = [total, *gradient]
    compiled: Callable[..., Any] = pytensor.function(inputs, outputs, trust_input=True)
    return compiled


def nothing(ranks: int) -> Workload:
    """Return one job a rank, each ``job[0] + job[1]**2``: the cost of dispatch alone."""
    jobs = pt.dmatrix("jobs", shape=(ranks, 2))
    total = map_rect(lambda _theta, job: job[0] + job[1] ** 2, None, jobs, name="nothing").sum()
    plain = (jobs[:, 0] + jobs[:, 1] ** 2).sum()
    point = np.stack([np.ones(ranks), 2.0 * np.arange(ranks)], axis=1)
    return Workload(
        value_and_gradient([jobs], total),
        [point],
        value_and_gradient([jobs], plain),
        lambda _ranks: 2,
        lambda _ranks: 3,
    )


@numeric_job
def spin(theta: float, _job: None, seconds: np.ndarray) -> tuple[float, float]:
    """Pass so much time, by the clock and not of a core."""
    until = time.perf_counter() + float(seconds)
    while time.perf_counter() < until:
        pass
    return theta * float(seconds), float(seconds)


def spinning(seconds: np.ndarray) -> Workload:
    """Return jobs that each take so many seconds."""
    theta = pt.dscalar("theta")
    total = map_rect(spin, theta, len(seconds), seconds).sum()
    n = len(seconds)
    return Workload(
        value_and_gradient([theta], total),
        [np.array(1.0)],
        None,
        lambda _ranks: 1,
        lambda ranks: n // ranks + 1,
    )


def shard(theta: Any, _job: None, data: Any) -> Any:
    """Return the log-likelihood of a logistic regression on one shard of the data."""
    eta = theta[0] + data["X"] @ theta[1:]
    return (data["y"] * eta - pt.softplus(eta)).sum()


def shards_data(rows: int = 100_000) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return parameters, shape (21,), and data of 20 shards of 20 covariates."""
    random = np.random.default_rng(20240001)
    p, n_shards = 20, 20
    covariates = random.standard_normal((rows, p))
    truth = np.concatenate([[-0.3], 0.5 * random.standard_normal(p)])
    chance = 1 / (1 + np.exp(-(truth[0] + covariates @ truth[1:])))
    y = (random.random(rows) < chance).astype(np.int64)
    theta = truth + 0.05 * random.standard_normal(p + 1)
    return theta, {"X": covariates.reshape(n_shards, -1, p), "y": y.reshape(n_shards, -1)}


def shards(rows: int = 100_000) -> Workload:
    """Return W1: a logistic regression in 20 shards."""
    start, data = shards_data(rows)
    theta = pt.dvector("theta", shape=start.shape)
    total = map_rect(shard, theta, len(data["y"]), data).sum()
    flat = {"X": pt.constant(data["X"].reshape(rows, -1)), "y": pt.constant(data["y"].ravel())}
    return Workload(
        value_and_gradient([theta], total),
        [start],
        value_and_gradient([theta], shard(theta, None, flat)),
        lambda _ranks: 21,
        lambda ranks: 21 + 20 // ranks,
    )


def subject(theta: Any, job: Any, data: Any) -> Any:
    """Return the log-likelihood of one Lotka-Volterra system with log-normal errors."""
    beta, delta, sigma = pt.exp(theta[0]), pt.exp(theta[1]), pt.exp(theta[2])
    rates = {"alpha": pt.exp(job[0]), "beta": beta, "gamma": pt.exp(job[1]), "delta": delta}
    options: dict[str, Any] = {"method": "tsit5", "rtol": 1e-6, "atol": 1e-6}
    states = solve_ivp(predation, 0.0, data["start"], data["times"], rates, **options)
    residuals = (pt.log(data["y"]) - pt.log(states)) / sigma
    constant = -pt.log(data["y"]).sum() - residuals.size * (theta[2] + 0.5 * math.log(2 * math.pi))
    return -0.5 * (residuals**2).sum() + constant


def predation(_t: Any, y: Any, p: Any) -> list[Any]:
    """Return the rates of change of prey and predators."""
    return [
        (p["alpha"] - p["beta"] * y[1]) * y[0],
        (-p["gamma"] + p["delta"] * y[0]) * y[1],
    ]


def lotka_volterra_data(subjects: int = 64) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Return ``[theta, jobs]``, shapes (3,) and (subjects, 2), and each subject's data."""
    random = np.random.default_rng(20240003)
    shared = np.log([0.028, 0.024, 0.25])
    own = np.log([0.55, 0.80]) + 0.15 * random.standard_normal((subjects, 2))
    start = np.array([30.0, 8.0]) * np.exp(0.2 * random.standard_normal((subjects, 2)))
    times = np.tile(np.arange(1.0, 21.0), (subjects, 1))
    beta, delta, sigma = np.exp(shared)
    (alpha, gamma), y = np.exp(own.T), start.T.copy()
    observed = np.empty((subjects, 20, 2))
    steps = 400  # between two observations; with so small steps Euler's midpoint rule will do
    for k in range(20):
        for _ in range(steps):
            middle = y + 0.5 / steps * np.stack(
                [(alpha - beta * y[1]) * y[0], (delta * y[0] - gamma) * y[1]]
            )
            y += np.stack(
                [
                    (alpha - beta * middle[1]) * middle[0],
                    (delta * middle[0] - gamma) * middle[1],
                ]
            ) / steps  # fmt: skip
        observed[:, k] = (y * np.exp(sigma * random.standard_normal(y.shape))).T
    point = [
        shared + 0.02 * random.standard_normal(3),
        own + 0.02 * random.standard_normal(own.shape),
    ]
    return point, {"start": start, "times": times, "y": observed}


def lotka_volterra(subjects: int = 64) -> Workload:
    """Return a model like W3a: subjects with an ODE each, eight to a block."""
    point, data = lotka_volterra_data(subjects)
    theta, jobs = pt.dvector("theta", shape=(3,)), pt.dmatrix("jobs", shape=(subjects, 2))
    total = map_rect(subject, theta, jobs, data, grain_size=8).sum()
    return Workload(
        value_and_gradient([theta, jobs], total),
        point,
        None,
        lambda ranks: 3 + 2 * subjects // ranks,
        lambda ranks: 3 + 3 * subjects // ranks,
    )


def group(_theta: None, job: Any, data: Any) -> Any:
    """Return the log-likelihood of one small logistic regression."""
    eta = data["X"] @ job
    return (data["y"] * eta - pt.softplus(eta)).sum()


def cheap_data(n_jobs: int = 1000) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return parameters, shape (n_jobs, 5), and 20 observations a job."""
    random = np.random.default_rng(20240005)
    x, y = random.standard_normal((n_jobs, 20, 5)), random.integers(0, 2, (n_jobs, 20))
    return 0.3 * random.standard_normal((n_jobs, 5)), {"X": x, "y": y}


def cheap(n_jobs: int = 1000) -> Workload:
    """Return cheap jobs: 20 observations and 5 coefficients of their own."""
    point, data = cheap_data(n_jobs)
    jobs = pt.dmatrix("jobs", shape=(n_jobs, 5))
    total = map_rect(group, None, jobs, data).sum()
    eta = (pt.constant(data["X"]) * jobs[:, None, :]).sum(axis=-1)
    plain = (pt.constant(data["y"]) * eta - pt.softplus(eta)).sum()
    return Workload(
        value_and_gradient([jobs], total),
        [point],
        value_and_gradient([jobs], plain),
        lambda ranks: 5 * n_jobs // ranks,
        lambda ranks: 6 * n_jobs // ranks,
    )


def big_shared(ranks: int, size: int = 100_000) -> Workload:
    """Return one job a rank that does next to nothing with many shared parameters."""
    theta, scale = pt.dvector("theta", shape=(size,)), np.arange(1.0, ranks + 1)
    total = map_rect(lambda theta, _job, s: s * (theta @ theta), theta, ranks, scale).sum()
    return Workload(
        value_and_gradient([theta], total),
        [np.ones(size)],
        value_and_gradient([theta], scale.sum() * (theta @ theta)),
        lambda _ranks: size,
        lambda _ranks: size + 1,
    )


def big_jobs(size: int = 100_000, own: int = 100) -> Workload:
    """Return jobs that do next to nothing with many parameters of their own."""
    n_jobs = size // own
    jobs = pt.dmatrix("jobs", shape=(n_jobs, own))
    total = map_rect(lambda _theta, job: job @ job, None, jobs).sum()
    return Workload(
        value_and_gradient([jobs], total),
        [np.ones((n_jobs, own))],
        value_and_gradient([jobs], (jobs**2).sum()),
        lambda ranks: size // ranks,
        lambda ranks: (size + n_jobs) // ranks,
    )
