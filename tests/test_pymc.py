"""PyMC models with `map_rect`: the same as without."""

import _thread
import warnings

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_mpimap import MapRectWarning, SerialPool, map_rect, numeric_job
from tests.helpers import CountingPool, assert_close, in_modes

GROUPS = 6
Y = [np.random.default_rng(k).normal(0.3 * k, 1.0, size=3 + k) for k in range(GROUPS)]


def group(theta, mu, y):
    return pm.logp(pm.Normal.dist(mu, theta["sigma"]), y).sum()


@numeric_job
def numeric_group(theta, mu, y):
    sigma = theta["sigma"]
    z = (y - mu) / sigma
    value = -0.5 * (z @ z) - len(y) * (np.log(sigma) + 0.5 * np.log(2 * np.pi))
    return value, {"sigma": (z @ z - len(y)) / sigma}, z.sum() / sigma


def in_the_model(theta, mu, y):
    """The same without `map_rect`."""
    return pt.stack([group(theta, mu[j], y[j]) for j in range(GROUPS)])


def build(likelihood):
    """A hierarchical model, its likelihood by ``likelihood(theta, jobs, data)``."""
    with pm.Model(coords={"group": range(GROUPS)}) as model:
        sigma = pm.HalfNormal("sigma")
        centre = pm.Normal("centre")
        mu = pm.Normal("mu", centre, 1.0, dims="group")
        pm.Potential("likelihood", likelihood({"sigma": sigma}, mu, Y), dims="group")
    return model


def mapped(function):
    return build(lambda theta, jobs, data: map_rect(function, theta, jobs, data))


each_kind = pytest.mark.parametrize("f", [group, numeric_group], ids=["traced", "numeric"])


def points(model):
    random = np.random.default_rng(9)
    start = model.initial_point()
    return [
        {name: random.normal(size=value.shape) for name, value in start.items()} for _ in range(3)
    ]


@each_kind
@in_modes("FAST_COMPILE", "NUMBA")
def test_logp_and_dlogp(f):
    model, plain = mapped(f), build(in_the_model)
    functions = [(m.compile_logp(), m.compile_dlogp()) for m in (model, plain)]
    for point in points(plain):
        (logp, dlogp), (plain_logp, plain_dlogp) = (
            [function(point) for function in pair] for pair in functions
        )
        assert_close(logp, plain_logp)
        assert_close(dlogp, plain_dlogp)


def test_second_derivative():
    model, plain = mapped(group), build(in_the_model)
    functions = [m.compile_d2logp(negate_output=False) for m in (model, plain)]
    assert_close(*(function(points(plain)[0]) for function in functions))


def test_terms_of_the_logp_are_the_groups():
    model = mapped(group)
    with model:
        (terms,) = model.logp(vars=[model["likelihood"]], sum=False)
    assert terms.type.shape == (GROUPS,)


def test_log_likelihood_as_an_observed_variable():
    """A CustomDist whose logp is a map: PyMC then knows it as a likelihood."""

    def logp(value, mu, sigma):
        def row(theta, job, y):
            return pm.logp(pm.Normal.dist(job, theta), y)

        return map_rect(row, sigma.ravel()[0], mu, value)

    y = np.stack([part[:3] for part in Y])
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma")
        mu = pm.Normal("mu", shape=GROUPS)
        pm.CustomDist(
            "y", mu[:, None], sigma, logp=lambda *a: logp(*a).reshape(y.shape), observed=y
        )
    with pm.Model() as plain:
        sigma = pm.HalfNormal("sigma")
        mu = pm.Normal("mu", shape=GROUPS)
        pm.Normal("y", mu[:, None], sigma, observed=y)
    for point in points(plain):
        assert_close(model.compile_logp()(point), plain.compile_logp()(point))
        assert_close(model.compile_dlogp()(point), plain.compile_dlogp()(point))


def test_prior_and_posterior_predictive_do_not_evaluate_the_likelihood():
    with CountingPool() as pool, mapped(group), warnings.catch_warnings():
        # PyMC warns that a model has potentials, which predictive samples leave out.
        warnings.filterwarnings("ignore", message=".*[Pp]otential")
        prior = pm.sample_prior_predictive(5, random_seed=1)
    assert prior.prior["mu"].shape == (1, 5, GROUPS)
    assert pool.calls == 0


def sample(model, sampler, **options):
    with model:
        return pm.sample(
            draws=30,
            tune=30,
            chains=1,
            cores=1,
            nuts_sampler=sampler,
            random_seed=3,
            progressbar=False,
            compute_convergence_checks=False,
            **options,
        )


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("sampler", ["pymc", "nutpie"])
@in_modes("NUMBA")
def test_sample(f, sampler, capfd):
    """Without a warning (they are errors here), and twice the same draws."""
    with SerialPool() as pool:
        draws = sample(mapped(f), sampler).posterior["mu"]
        assert pool.report().evaluations > 60
    assert np.isfinite(draws).all()
    assert draws.std() > 0.01
    assert "arn" not in capfd.readouterr().err
    # Another pool makes no difference to a single bit.
    with CountingPool() as another:
        again = sample(mapped(f), sampler).posterior["mu"]
        assert another.calls > 60
    assert np.array_equal(draws, again)


def test_sample_with_metropolis():
    """Samplers without gradients evaluate the value alone, in any mode."""
    f = numeric_job(derivatives=None)(lambda *a: numeric_group.function(*a)[0])
    with mapped(f), SerialPool() as pool:
        draws = pm.sample(
            draws=20,
            tune=20,
            chains=1,
            step=pm.Metropolis(),
            random_seed=3,
            progressbar=False,
            compute_convergence_checks=False,
        ).posterior["sigma"]
        assert pool.report().evaluations >= 40
    assert (draws > 0).all()


def test_error_in_a_thread_of_nutpies_interrupts_it_where_warnings_are_errors(monkeypatch):
    struck = []
    monkeypatch.setattr(_thread, "interrupt_main", lambda: struck.append("once"))
    with pytest.raises(MapRectWarning, match="interrupted, because nobody sees it"):
        SerialPool().escalate(ValueError("nobody sees it"))
    assert struck == ["once"]
