"""The theophylline examples: their jobs and posteriors against the closed form of their ODE.

`fit.py` solves it by `solve_ivp`, `fit_scipy.py` by SciPy. The concentration after one oral dose
has a closed form, Bateman's function. It is written here independently of the examples, for NumPy
(complex numbers included) and for PyTensor.
"""

import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from tests.helpers import in_modes, load_example

EXAMPLES = Path(__file__).parents[1] / "examples"
TYPICAL = np.log([1.5, 0.04, 0.45])


def bateman(ka, clearance, volume, dose, hours, *, exp):
    ke = clearance / volume
    return dose * ka / (volume * (ka - ke)) * (exp(-ke * hours) - exp(-ka * hours))


@pytest.fixture(scope="module")
def fit():
    return load_example("fit")


@pytest.fixture(scope="module")
def fit_scipy():
    return load_example("fit_scipy")


@pytest.fixture(scope="module", params=["traced", "numeric"])
def build_model(request, fit, fit_scipy):
    """Build the model of either example."""
    if request.param == "traced":
        return fit.build_model
    return lambda data: fit.build_model(data, fit_scipy.subject, on_error="reject")


@pytest.fixture(scope="module")
def traced_job(fit, data):
    """A function of the job's arguments: fit.py's job and its derivatives, without `map_rect`."""
    sigma, log_parameters = pt.scalar("sigma"), pt.vector("log_parameters", shape=(3,))
    x_r = {"dose": pt.scalar("dose"), "hours": pt.vector("hours"), "conc": pt.vector("conc")}
    value = fit.subject({"sigma": sigma}, log_parameters, x_r)
    gradient = pytensor.grad(value, [sigma, log_parameters])
    evaluate = pytensor.function([sigma, log_parameters, *x_r.values()], [value, *gradient])

    def job(theta, log_parameters, x_r):
        value, by_sigma, by_own = evaluate(theta["sigma"], log_parameters, *x_r.values())
        return value, {"sigma": by_sigma}, by_own

    return job


@pytest.fixture(params=["traced", "numeric"])
def subject(request, traced_job, fit_scipy):
    """The job of either example, which returns its value and its derivatives."""
    return traced_job if request.param == "traced" else fit_scipy.subject


@pytest.fixture(scope="module")
def data(fit):
    return fit.load()


def closed_form_model(fit, data):
    """The example's priors, with the closed form instead of the ODE and of `map_rect`."""
    lengths = [len(hours) for hours in data["hours"]]
    dose = np.repeat(data["dose"], lengths)
    subject = np.repeat(np.arange(len(lengths)), lengths)
    with pm.Model(coords={"subject": data["name"], "parameter": fit.PARAMETERS}) as model:
        log_parameters, sigma = fit.population()
        ka, clearance, volume = (pm.math.exp(log_parameters[subject, i]) for i in range(3))
        hours = np.concatenate(data["hours"])
        mean = bateman(ka, clearance, volume, dose, hours, exp=pm.math.exp)
        pm.Normal("conc", mean, sigma, observed=np.concatenate(data["conc"]))
    return model


def test_data_are_twelve_subjects_without_the_sample_before_the_dose(data):
    assert len(data["name"]) == len(set(data["name"])) == 12
    assert [len(hours) for hours in data["hours"]] == [10] * 12
    assert all((np.diff(hours, prepend=0.0) > 0).all() for hours in data["hours"])
    # The first subject's second line of the file, and the last one's last.
    assert (data["dose"][0], data["hours"][0][0], data["conc"][0][0]) == (4.02, 0.25, 2.84)
    assert (data["dose"][-1], data["hours"][-1][-1], data["conc"][-1][-1]) == (5.3, 24.15, 1.17)


@pytest.mark.parametrize("i", range(12))
def test_job_agrees_with_closed_form(subject, data, i):
    x_r = {key: np.asarray(data[key][i]) for key in ("dose", "hours", "conc")}

    def exact(parameters):
        """The log likelihood at (sigma, log ka, log CL, log V), which may be complex."""
        sigma, *logs = parameters
        mean = bateman(*np.exp(logs), x_r["dose"], x_r["hours"], exp=np.exp)
        z = (x_r["conc"] - mean) / sigma
        return -0.5 * (z @ z) - len(z) * np.log(sigma * np.sqrt(2 * np.pi))

    random = np.random.default_rng(i)
    # From the population, and from a much wider one, as is met while NUTS tunes.
    for width in (0.3, 0.3, 1.0, 1.0):
        log_parameters = TYPICAL + width * random.normal(size=3)
        sigma = random.uniform(0.4, 1.5)
        value, d_theta, d_job = subject({"sigma": np.array(sigma)}, log_parameters, x_r)

        parameters = np.array([sigma, *log_parameters])
        steps = 1e-30j * np.eye(4)  # complex steps: derivatives exact to rounding
        gradient = [exact(parameters + step).imag / 1e-30 for step in steps]
        np.testing.assert_allclose(value, exact(parameters), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose([d_theta["sigma"], *d_job], gradient, rtol=1e-4, atol=1e-3)


IMPOSSIBLE = ([0.0, 40.0, -40.0], [800.0, -3.0, -0.7])


def far_out(log_parameters):
    x_r = {"dose": np.array(4.0), "hours": np.array([1.0, 2.0]), "conc": np.array([1.0, 1.0])}
    return {"sigma": np.array(0.7)}, np.array(log_parameters), x_r


@pytest.mark.parametrize("impossible", IMPOSSIBLE)
def test_numeric_job_raises_where_the_solver_gives_up(fit_scipy, impossible):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=fit_scipy.ODEintWarning)
        with pytest.raises(ArithmeticError):
            fit_scipy.subject(*far_out(impossible))


@pytest.mark.parametrize("impossible", IMPOSSIBLE)
def test_traced_job_is_nan_where_the_solver_gives_up(traced_job, impossible):
    assert np.isnan(traced_job(*far_out(impossible))[0])


def test_model_agrees_with_closed_form(fit, build_model, data):
    mapped, plain = build_model(data), closed_form_model(fit, data)
    assert [v.name for v in mapped.value_vars] == [v.name for v in plain.value_vars]
    value_and_gradient = [
        model.compile_fn([model.logp(), model.dlogp()], point_fn=True) for model in (mapped, plain)
    ]
    random = np.random.default_rng(0)
    for _ in range(5):
        point = {
            "typical_log__": TYPICAL + 0.2 * random.normal(size=3),
            "spread_log__": np.log([0.7, 0.3, 0.15]) + 0.2 * random.normal(size=3),
            "offset": random.normal(size=(12, 3)),
            "sigma_log__": random.uniform(-0.7, 0.2),
        }
        (value, gradient), (exact, exact_gradient) = (f(point) for f in value_and_gradient)
        np.testing.assert_allclose(value, exact, rtol=1e-5)
        np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-4, atol=1e-2)


def posterior(model, draws, tune, chains, seed):
    with model, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what samplers and compilers say is not tested here
        # By name: in another mode than Numba's, PyMC takes its own NUTS, which takes longer.
        trace = pm.sample(
            draws,
            tune=tune,
            chains=chains,
            cores=1,
            random_seed=seed,
            progressbar=False,
            nuts_sampler="nutpie",
        )
    assert int(trace["sample_stats"]["diverging"].sum()) <= 2
    return az.summary(trace, var_names=["typical", "spread", "sigma"], kind="all", round_to="none")


@pytest.fixture(scope="module")
def plain_posterior(fit, data):
    """As it is cheap, sampled at such length that errors are nearly those of the mapped model."""
    return posterior(closed_form_model(fit, data), draws=2000, tune=250, chains=4, seed=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
@in_modes("NUMBA")  # where each job is compiled
def test_posterior_agrees_with_closed_form(build_model, data, plain_posterior):
    """The posterior means differ by less than 4 standard errors.

    Either mean has a Monte Carlo standard error; that of their difference is the root of the sum
    of the squares. With 7 comparisons, one beyond 4 of these happens by chance about
    once in 2000 times, and the seeds are fixed.
    """
    mapped = posterior(build_model(data), draws=200, tune=150, chains=2, seed=11)
    plain = plain_posterior
    assert list(mapped.index) == list(plain.index)
    assert len(mapped) == 7
    standard_error = np.hypot(mapped["mcse_mean"], plain["mcse_mean"])
    assert (standard_error < 0.25 * plain["sd"]).all()  # the comparison can tell something
    assert (abs(mapped["mean"] - plain["mean"]) < 4 * standard_error).all()
