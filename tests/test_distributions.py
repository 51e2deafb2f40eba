"""A job's log-probability is PyMC's, wherever parameters and values are: it never raises."""

import numpy as np
import pymc as pm
import pymc.distributions
import pytensor.tensor as pt
import pytest
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.null_type import NullType

from pymc_mpimap import JobError, map_rect
from tests.distributions import CASES, WITHOUT_LOGP

N = 2


def test_every_distribution_is_tried_or_has_no_log_probability():
    tried = {name.split(",")[0] for name in CASES} | set(WITHOUT_LOGP)
    assert [name for name in pymc.distributions.__all__ if name not in tried] == []


def compiled(total, inputs, has_gradient):
    """Compile as PyMC compiles a model: the value, and its gradient where there is one."""
    total = rewrite_pregrad(total)
    smooth = [v for v in inputs if has_gradient and v.type.dtype == "float64"]
    gradients = pt.grad(total, smooth, disconnected_inputs="ignore", null_gradients="return")
    known = [g for g in gradients if not isinstance(g.type, NullType)]
    return pm.compile(inputs, [total, *known], on_unused_input="ignore"), len(known)


def inputs_of(case):
    valid = case.points()[0]
    return {name: pt.as_tensor(value).type(name=name) for name, value in valid.items()}


def check(name):
    case = CASES[name]
    inputs = inputs_of(case)
    variables, has_gradient = list(inputs.values()), case.has_gradient
    plain, n_plain = compiled(N * case.logp(inputs), variables, has_gradient)
    output = map_rect(lambda values, _job: case.logp(values), inputs, N)
    mapped, n_mapped = compiled(output.sum(), variables, has_gradient)
    assert n_plain == n_mapped
    for point in case.points():
        try:
            value, *gradient = plain(*point.values())
        except (ValueError, RuntimeError):  # SciPy refuses NaN; a package may be missing.
            with pytest.raises(JobError):
                mapped(*point.values())
            continue
        its_value, *its_gradient = mapped(*point.values())
        np.testing.assert_allclose(its_value, value, rtol=1e-12, err_msg=f"{name} at {point}")
        for own, expected in zip(its_gradient, gradient, strict=True):
            finite = np.isfinite(expected)
            np.testing.assert_allclose(
                np.asarray(own)[finite], expected[finite], rtol=1e-9, atol=1e-300,
                err_msg=f"gradient of {name} at {point}",
            )  # fmt: skip


# What PyMC's own functions warn of.
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_jobs_log_probability_is_that_of_pymc(name):
    check(name)


Y = np.array([[3, 5, 2], [0, 1, 4]])


def counts(mapped, check_bounds):
    with pm.Model(check_bounds=check_bounds) as model:
        a = pm.Normal("a")

        def job(a, _j, y):
            return pm.logp(pm.Poisson.dist(a), y).sum()

        pm.Potential("y", map_rect(job, a, 2, Y).sum() if mapped else job(a, None, Y))
    return model


@pytest.mark.parametrize("check_bounds", [True, False])
@pytest.mark.parametrize("a", [1.3, 0.0, -1e-9, -2.0, np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_model_says_whether_parameters_are_checked(check_bounds, a):
    mapped, plain = counts(True, check_bounds), counts(False, check_bounds)
    point = {"a": np.array(a)}
    for function in ("compile_logp", "compile_dlogp"):
        result, expected = (getattr(model, function)()(point) for model in (mapped, plain))
        np.testing.assert_allclose(result, expected, rtol=1e-12)
    if a == -1e-9:
        assert np.isneginf(mapped.compile_logp()(point)) == check_bounds


@pytest.mark.parametrize("check_bounds", [True, False])
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Skipping:UserWarning")
def test_a_model_says_so_for_samplers_by_jax_too(check_bounds):
    jax = pytest.importorskip("jax")  # an extra of this package
    from pymc.sampling.jax import get_jaxified_logp

    def von_mises(kappa, _j, y):
        return pm.logp(pm.VonMises.dist(0.0, kappa), y).sum()

    with jax.enable_x64(True):
        with pm.Model(check_bounds=check_bounds) as model:
            kappa = pm.Normal("kappa")
            pm.Potential("y", map_rect(von_mises, kappa, 2, Y / 10).sum())
            function = get_jaxified_logp(model, negative_logp=False)
        # Outside of the context: what is rewritten at the first call does not know the model.
        value = function([np.array(-0.5)])
    assert np.isinf(float(value)) == check_bounds


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["pymc", "nutpie"])
def test_samplers_reject_what_is_out_of_range(sampler):
    """Half of the prior's mass is where the rate of a count is negative."""
    with counts(True, True):
        idata = pm.sample(
            100, tune=200, chains=1, nuts_sampler=sampler, progressbar=False, random_seed=1,
            compute_convergence_checks=False, initvals={"a": 1.0},
        )  # fmt: skip
    draws = idata.posterior["a"].values
    assert draws.size == 100
    assert (draws > 0).all()
    assert np.unique(draws).size > 50
