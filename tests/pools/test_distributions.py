"""Invalid parameters of PyMC's distributions, in jobs: -inf on any ranks, and no exception."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_mpimap import map_rect, solve_ivp
from tests.distributions import CASES
from tests.helpers import compiled, in_modes

pytestmark = pytest.mark.slow

ELEVEN = (
    "Poisson", "Binomial", "NegativeBinomial", "Gamma", "Normal", "StudentT", "Beta", "Weibull",
    "ZeroInflatedPoisson", "MvNormal", "Exponential",
)  # fmt: skip
N = 3


def all_points(cases):
    """Return points of all cases together, each of which strays from the valid one in turn."""
    points = {name: case.points() for name, case in cases.items()}
    valid = {name: own[0] for name, own in points.items()}
    yield valid
    for name, own in points.items():
        for point in own[1:4]:
            yield {**valid, name: point}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@in_modes("NUMBA", "FAST_COMPILE")
def test_many_distributions_in_one_job_have_the_same_bits_on_all_ranks(mode):
    cases = {name: CASES[name] for name in ELEVEN}
    valid = next(iter(all_points(cases)))
    inputs = {
        name: {p: pt.as_tensor(value).type(name=f"{name}_{p}") for p, value in point.items()}
        for name, point in valid.items()
    }
    flat = [v for own in inputs.values() for v in own.values()]
    smooth = [v for v in flat if v.type.dtype == "float64"]

    def job(inputs, _job):
        return pt.stack([case.logp(inputs[name]) for name, case in cases.items()])

    each = map_rect(job, inputs, N).reshape((N, len(ELEVEN)))
    f = compiled([each, *pt.grad(each.sum(), smooth, disconnected_inputs="ignore")], flat)
    for point in all_points(cases):
        values, *_ = f(*(value for own in point.values() for value in own.values()))
        assert (values == values[0]).all() or np.isnan(values).any()
        strayed = [name for name in ELEVEN if point[name] is not valid[name]]
        others = [k for k, name in enumerate(ELEVEN) if name not in strayed]
        assert np.isfinite(values[:, others]).all()


@in_modes("NUMBA", "FAST_COMPILE")
@pytest.mark.parametrize("rate", [0.5, 0.0, -1e-9, -2.0, np.nan])
def test_counts_whose_rate_comes_from_an_ode(mode, rate):
    """A rate that rounding makes negative, or that a failed solve makes NaN, is no exception."""
    counts = np.array([[3, 5], [0, 1], [2, 2]])

    def job(rate, _job, counts):
        y = solve_ivp(lambda t, y, p: [-p * y[0]], 0.0, [rate], [1.0, 2.0], 0.3, method="tsit5")
        return pm.logp(pm.Poisson.dist(y[:, 0]), counts).sum()

    theta = pt.dscalar("rate")
    total = map_rect(job, theta, N, counts).sum()
    value, gradient = compiled([total, pt.grad(total, theta)], [theta])(rate)
    assert np.isfinite(value) == (rate > 0)
    assert value == -np.inf or rate > 0
    assert np.isfinite(gradient) == (rate > 0 or rate < 0)
