"""The lynx and hare example: its posterior against posteriordb's."""

import warnings

import arviz as az
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from tests.helpers import load_example

# posteriordb, hudson_lynx_hare-lotka_volterra: means and standard deviations of 10,000 draws by
# Stan 2.19, thinned until they were independent of each other (ESS 9,700 to 10,200).
REFERENCE = {
    "growth": (0.5468644997839287, 0.06305478942737446),
    "predation": (0.027747287767808132, 0.004154717926313882),
    "death": (0.8000953602331249, 0.08937017721602411),
    "gain": (0.024085915253454455, 0.0035280896902680696),
    "initial[0]": (34.035222477046915, 2.916898849650096),
    "initial[1]": (5.935897133680614, 0.5305520406061408),
    "sigma[hares]": (0.24805686320251966, 0.04326267715979964),
    "sigma[lynxes]": (0.251016914583619, 0.043590336855424884),
}


@pytest.fixture(scope="module")
def example():
    return load_example("lynx_hare")


def test_data_are_the_pelts_of_21_years(example):
    years, pelts = example.load()
    assert years.tolist() == list(range(1900, 1921))
    assert pelts.shape == (21, 2)
    assert pelts[[0, 1, -1]].tolist() == [[30, 4], [47.2, 6.1], [24.7, 8.6]]


def test_log_density_and_gradient_agree_with_the_model_of_the_docstring(example):
    years, pelts = example.load()
    model = example.build_model(years, pelts)
    names = ["growth", "predation", "death", "gain", "initial", "sigma"]
    assert [variable.name for variable in model.free_RVs] == names

    def log_density(log_parameters):
        """Return it up to a constant, the Jacobian of the logarithm included."""
        growth, predation, death, gain, *initial = np.exp(log_parameters[:6])
        sigma = np.exp(log_parameters[6:])

        def rhs(_t, y):
            return [(growth - predation * y[1]) * y[0], (gain * y[0] - death) * y[1]]

        y = solve_ivp(rhs, (0, 20), initial, "DOP853", range(21), rtol=1e-12, atol=1e-12).y.T
        residual = (np.log(pelts) - np.log(y)) / sigma
        mu, scale = np.array([[1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05]])
        rates = (np.exp(log_parameters[:4]) - mu) / scale
        return (
            -(rates**2).sum() / 2
            + log_parameters[:4].sum()
            - ((log_parameters[4:6] - np.log(10)) ** 2).sum() / 2
            - ((log_parameters[6:] + 1) ** 2).sum() / 2
            - (residual**2).sum() / 2
            - len(pelts) * log_parameters[6:].sum()
        )

    value_and_gradient = model.logp_dlogp_function(ravel_inputs=True)
    means = np.log([mean for mean, _ in REFERENCE.values()])
    random = np.random.default_rng(1)
    points = means + 0.1 * random.normal(size=(4, 8))
    found = [value_and_gradient(point) for point in points]
    expected = [log_density(point) for point in points]
    # The constant drops out of differences.
    np.testing.assert_allclose(
        np.diff([value for value, _ in found]), np.diff(expected), rtol=1e-5, atol=1e-4
    )
    steps = 1e-4 * np.eye(8)
    for point, (_, gradient) in zip(points, found, strict=True):
        differences = [(log_density(point + h) - log_density(point - h)) / 2e-4 for h in steps]
        np.testing.assert_allclose(gradient, differences, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_posterior_means_agree_with_posteriordb(example):
    """They differ by less than 4 standard errors, of this run and of the reference together.

    With 8 comparisons, one beyond 4 of these happens by chance about once in 2000 times, and the
    seed is fixed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what samplers and compilers say is not tested here
        trace = example.sample(example.build_model(*example.load()))
    found = az.summary(trace, round_to="none")
    assert set(found.index) == set(REFERENCE)
    assert found["r_hat"].max() < 1.02
    for name, (mean, sd) in REFERENCE.items():
        error = np.hypot(found.loc[name, "mcse_mean"], sd / np.sqrt(10_000))
        assert error < 0.06 * sd  # the comparison can tell something
        assert abs(found.loc[name, "mean"] - mean) < 4 * error, name
