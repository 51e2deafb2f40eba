"""Three workloads whose values and gradients are known from Stan.

The numbers in ``stan_values.json`` are the summed log-likelihood (no priors, no Jacobian terms,
constants kept) and its gradient at `theta0`, from Stan 2.35 (Math 4.9, by httpstan 4.13); for W3a
from its rk45 at tight tolerances. The inputs are made here from the same seeds, by the same calls
of NumPy's generator in the same order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

VALUES = json.loads(Path(__file__).with_name("stan_values.json").read_text())


@dataclass(frozen=True)
class Workload:
    """Inputs, the point to evaluate at, and what Stan finds there."""

    theta0: np.ndarray
    data: dict[str, Any]
    value: float
    gradient: np.ndarray


def _workload(name: str, theta0: np.ndarray, **data: Any) -> Workload:
    stan = VALUES[name]
    return Workload(theta0, data, stan["value"], np.array(stan["grad"], dtype=float))


def w1() -> Workload:
    """Return a logistic regression: 20 shards of 5,000 observations of 20 covariates.

    ``theta0`` is the intercept and the 20 coefficients.
    """
    random = np.random.default_rng(20240001)
    n, p, shards = 100_000, 20, 20
    covariates = random.standard_normal((n, p))
    truth = np.concatenate([[-0.3], 0.5 * random.standard_normal(p)])
    chance = 1 / (1 + np.exp(-(truth[0] + covariates @ truth[1:])))
    y = (random.random(n) < chance).astype(np.int64)
    theta0 = truth + 0.05 * random.standard_normal(p + 1)
    return _workload("w1", theta0, X=covariates.reshape(shards, -1, p), y=y.reshape(shards, -1))


def w3a() -> Workload:
    """Return 64 Lotka-Volterra systems, observed at 20 times with log-normal error.

    ``theta0`` is log beta, log delta, log sigma, and then log alpha and log gamma of each subject:
    prey grow at the rate ``alpha - beta * predators``, predators at ``-gamma + delta * prey``.
    """
    random = np.random.default_rng(20240003)
    subjects, times = 64, np.arange(1.0, 21.0)
    shared = np.log([0.028, 0.024, 0.25])
    log_alpha = np.log(0.55) + 0.15 * random.standard_normal(subjects)
    log_gamma = np.log(0.80) + 0.15 * random.standard_normal(subjects)
    own = np.stack([log_alpha, log_gamma], axis=1)
    prey = 30.0 * np.exp(0.2 * random.standard_normal(subjects))
    predators = 8.0 * np.exp(0.2 * random.standard_normal(subjects))
    start = np.stack([prey, predators], axis=1)
    y = np.empty((subjects, len(times), 2))
    for j in range(subjects):
        beta, delta, sigma = np.exp(shared)
        alpha, gamma = np.exp(own[j])
        states = _solve((alpha, beta, gamma, delta), start[j], times)
        y[j] = states * np.exp(sigma * random.standard_normal((len(times), 2)))
    theta0 = np.concatenate([shared, own.ravel()])
    theta0 += 0.02 * random.standard_normal(len(theta0))
    return _workload("w3a", theta0, times=times, start=start, y=y)


def _solve(rates: tuple[float, ...], start: np.ndarray, times: np.ndarray) -> np.ndarray:
    alpha, beta, gamma, delta = rates

    def derivative(t: float, z: np.ndarray) -> list[float]:
        return [(alpha - beta * z[1]) * z[0], (-gamma + delta * z[0]) * z[1]]

    # The solver and tolerances are part of the recipe: the observations depend on them.
    return solve_ivp(derivative, (0, times[-1]), start, t_eval=times, rtol=1e-10, atol=1e-10).y.T


def w4() -> Workload:
    """Return Stan's hello example: ``theta[0] + theta[1]**2`` of two jobs, (1, 0) and (1, 2)."""
    return _workload("w4_J2", np.array([[1.0, 0.0], [1.0, 2.0]]))
