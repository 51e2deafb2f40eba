"""Draws of another model or another run: whatever the step method, they are told from one's own."""

import logging
import shutil

import numpy as np
import pymc as pm
import pytensor
import pytest

import pymc_mpimap as mpimap
from pymc_mpimap import InputError, MapRectWarning
from pymc_mpimap.draws.model import difference, has_logp, newest_with_logp
from tests.draws.chains import contents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

Y = np.array([[1.0, 2.0, 0.5], [0.3, -1.0, 4.0]])


def group(sigma, mu, y):
    return pm.logp(pm.Normal.dist(mu, sigma), y).sum()


def likelihood(mu, data):
    return pm.logp(pm.Normal.dist(mu, 1.0), data.T).sum()


def mapped_likelihood(mu, data):
    return mpimap.map_rect(group, 1.0, mu, data).sum()


def normal():
    return pm.Normal("mu", 0, 5, shape=2)


METHODS = [
    (pm.NUTS, normal),
    (pm.HamiltonianMC, normal),
    (pm.Metropolis, normal),
    (pm.Metropolis, lambda: pm.Poisson("mu", 3, shape=2)),
    (pm.DEMetropolisZ, normal),
    (pm.Slice, normal),
    (pm.BinaryMetropolis, lambda: pm.Bernoulli("mu", 0.5, shape=2)),
    (pm.BinaryGibbsMetropolis, lambda: pm.Bernoulli("mu", 0.5, shape=2)),
    (pm.CategoricalGibbsMetropolis, lambda: pm.Categorical("mu", [0.2, 0.3, 0.5], shape=2)),
]


def sample(
    path,
    draws=20,
    *,
    method=pm.Metropolis,
    variable=normal,
    data=Y,
    factor=2.0,
    likelihood=likelihood,
    chains=1,
    random_seed=1,
    **options,
):
    with pytensor.config.change_flags(mode="FAST_COMPILE"), pm.Model():
        mu = variable()
        pm.Deterministic("twice", factor * mu)
        pm.Potential("lik", likelihood(mu, data))
        return pm.sample(
            draws,
            tune=10,
            chains=chains,
            cores=1,
            step=method([mu]),
            random_seed=random_seed,
            trace=mpimap.disk_trace(path, **options),
            progressbar=False,
            compute_convergence_checks=False,
            discard_tuned_samples=False,
        )


def refused(path, match, **changed):
    before = contents(path)
    with pytest.raises(InputError, match=match):
        sample(path, 30, **changed)
    assert contents(path) == before


@pytest.mark.parametrize(("method", "variable"), METHODS)
def test_other_data_are_refused_with_every_step_method(tmp_path, method, variable):
    given = {"method": method, "variable": variable}
    some = sample(tmp_path, **given)
    refused(
        tmp_path,
        r"chain-0\.draws are of another model or other data: the log-density of draw 15 was "
        r"-\d.*, is -\d.* under another path",
        data=Y + 0.01,
        **given,
    )
    more = sample(tmp_path, 30, **given)
    np.testing.assert_array_equal(more.posterior["mu"][:, :20], some.posterior["mu"])


def test_other_data_are_refused_with_several_methods(tmp_path):
    def both():
        return pm.Normal("mu", pm.Bernoulli("z", 0.5, shape=2), 5, shape=2)

    given = {"variable": both, "likelihood": mapped_likelihood}
    sample(tmp_path, **given)
    refused(tmp_path, "the log-density of draw 15 was", data=Y + 0.01, **given)


def test_complete_chains_of_another_model_are_not_returned(tmp_path):
    sample(tmp_path)
    with pytest.raises(InputError, match="the log-density of draw 15 was"):
        sample(tmp_path, data=Y + 0.01)


@pytest.mark.parametrize("method", [pm.NUTS, pm.Metropolis])
def test_another_deterministic_is_refused(tmp_path, method):
    sample(tmp_path, method=method)
    told = r"twice of draw 29\[0\] was (-?\d+\.\d+), is (-?\d+\.\d+)"
    refused(tmp_path, told, method=method, factor=3.0)
    # It is in no log-density, and so noticed though it is kept alone.
    shutil.rmtree(tmp_path)
    sample(tmp_path, method=method, var_names=["twice"])
    refused(tmp_path, told, method=method, factor=3.0, var_names=["twice"])


def test_a_draw_that_is_impossible_now(tmp_path):
    def bounded(mu, data):
        return pm.math.switch(mu.sum() > 1000, likelihood(mu, data), -np.inf)

    sample(tmp_path)
    refused(tmp_path, "was -.*, is -inf", likelihood=bounded)


def test_last_bits_are_a_warning(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "pymc")
    sample(tmp_path)
    sample(tmp_path, 25)
    assert "bit for bit" not in caplog.text
    sample(tmp_path, 30, data=Y * (1 + 1e-12))
    assert "chain-0.draws: the log-density of draw 31 was -" in caplog.text
    assert "will not be, bit for bit, those of a run without a break" in caplog.text


def test_all_chains_are_compared_before_any_is_written_to(tmp_path):
    sample(tmp_path, chains=2)
    for path in tmp_path.glob("chain-0.*"):
        path.unlink()
    refused(tmp_path, r"chain-1\.draws are of another model", data=Y + 0.01, chains=2)


@pytest.mark.parametrize(("method", "n_compiled"), [(pm.Metropolis, 1), (pm.Slice, 0)])
def test_the_log_density_is_compiled_once_and_where_the_method_has_none(
    tmp_path, monkeypatch, method, n_compiled
):
    def compile_logp(*args, **kwargs):
        compiled.append(1)
        return original(*args, **kwargs)

    compiled = []
    original = pm.Model.compile_logp
    monkeypatch.setattr(pm.Model, "compile_logp", compile_logp)
    sample(tmp_path, method=method, chains=3)
    assert len(compiled) == n_compiled


def test_chains_of_different_runs(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    sample(one, chains=2)
    sample(other, random_seed=2, chains=2)
    for path in other.glob("chain-1.*"):
        shutil.copy(path, one)
    with pytest.warns(MapRectWarning, match=r"one are of 2 different runs: 0; 1\. They may be"):
        assert [*mpimap.read_draws(one)] == [0, 1]
    refused(
        one,
        r"chain-1\.draws is of another run than chain-0\.draws beside it: put the file",
        chains=2,
    )


def test_chains_that_are_begun_later_are_of_the_same_run(tmp_path):
    sample(tmp_path, chains=2)
    sample(tmp_path, 30, chains=3, random_seed=2)
    for path in tmp_path.glob("chain-0.*"):
        path.unlink()
    sample(tmp_path, 30, chains=3)
    # A warning would be an error.
    assert [*mpimap.read_draws(tmp_path)] == [0, 1, 2]


def test_where_the_log_density_is_kept():
    kept = [k for k in range(1000) if has_logp(k)]
    assert kept[:5] == [0, 1, 3, 7, 15]
    for n_draws in range(1, 1000):
        assert newest_with_logp(n_draws) == max(k for k in kept if k < n_draws)


@pytest.mark.parametrize(
    ("was", "now", "is_other"),
    [
        (np.nan, np.nan, None),
        (-np.inf, -np.inf, None),
        ([0.0, np.nan], [-0.0, np.nan], None),
        (np.nan, 1.0, True),
        (1.0, np.nan, True),
        (1.0, -np.inf, True),
        (-np.inf, 1.0, True),
        (np.inf, -np.inf, True),
        (3, 4, True),
        (True, False, True),
        (1e9, 1e9 * (1 + 1e-7), False),
        (1e9, 1e9 * (1 + 1e-5), True),
        ([1e9, 0.0], [1e9, 1.0], False),
        (0.0, 1e-15, False),
        (0.0, 1e-9, True),
        (np.float32(1), np.float32(1 + 4e-6), False),
        (1 + 1j, 1 + 2j, True),
        ([1.0, 2.0], [1.0], True),
        (np.empty(0), np.empty(0), None),
    ],
)
def test_what_is_another_model(was, now, is_other):
    found = difference("x", np.asarray(was), np.asarray(now))
    assert (None if found is None else found.is_other) is is_other
