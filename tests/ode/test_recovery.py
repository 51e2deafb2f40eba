"""A posterior that an infinite derivative used to cut off, without a word."""

import numpy as np
import nutpie
import pymc as pm
import pytest
from scipy.integrate import solve_ivp as scipy_solve_ivp

from pymc_mpimap import solve_ivp
from tests.helpers import in_modes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TRUTH, DOSE, NOISE = 0.8, 4.0, 0.02
HOURS = np.array([0.25, 0.5, 1, 2, 3, 4, 6, 8, 12.0])


def turnover(t, y, h):
    """An inhibited turnover; the concentration starts at 0, where h below 1 is infinitely steep."""
    gut, central, response = y
    effect = central**h / (1.0 + central**h)
    return [-gut, gut - 0.3 * central, 1.0 - 0.9 * effect - 0.5 * response]


def seen():
    """Return data of the truth, from another solver."""
    exact = scipy_solve_ivp(
        lambda t, y: turnover(t, np.maximum(y, 0.0), TRUTH),
        (0, HOURS[-1]),
        [DOSE, 0.0, 2.0],
        "DOP853",
        HOURS,
        rtol=1e-9,
        atol=1e-12,
    )
    return exact.y[2] + NOISE * np.random.default_rng(3).normal(size=len(HOURS))


@pytest.mark.parametrize("sampler", ["pymc", "nutpie"])
@pytest.mark.parametrize("method", ["tsit5", "bdf", "scipy-LSODA"])
@in_modes("NUMBA")
def test_a_hill_exponent_below_1_is_recovered(method, sampler, mode):
    with pm.Model() as model:
        h = pm.TruncatedNormal("h", 1.0, 0.5, lower=0.1)
        y = solve_ivp(turnover, 0.0, [DOSE, 0.0, 2.0], HOURS, h, method=method)
        pm.Normal("seen", y[:, 2], NOISE, observed=seen())
        quiet = {"chains": 1, "tune": 200, "draws": 200, "progressbar": False}
        if sampler == "pymc":
            trace = pm.sample(random_seed=1, compute_convergence_checks=False, **quiet)
    if sampler == "nutpie":
        quiet["progress_bar"] = quiet.pop("progressbar")
        trace = nutpie.sample(nutpie.compile_pymc_model(model), seed=1, **quiet)
    draws = trace["posterior"]["h"].to_numpy().ravel()
    assert int(trace["sample_stats"]["diverging"].sum()) == 0
    assert draws.std() < 0.1
    assert abs(draws.mean() - TRUTH) < 3 * draws.std()
    assert draws.min() < TRUTH < draws.max()
