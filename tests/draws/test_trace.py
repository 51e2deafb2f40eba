"""Sampling with draws on disk: interrupted anywhere, it gives what it would have given."""

import logging

import numpy as np
import pymc as pm
import pytensor
import pytest

import pymc_mpimap as mpimap
from pymc_mpimap import InputError
from pymc_mpimap.draws import writer
from tests.draws.files import overwrite, records, state_file

pytestmark = pytest.mark.slow

TIMES = ("time", "perf_counter")
TUNE = 25


class StopError(Exception):
    """Ends sampling where a kill would."""


def at(chain, draw, how):
    def callback(trace, draw):
        if (draw.chain, draw.draw_idx) == wanted:
            raise how

    wanted = (chain, draw)
    return callback


def nuts(scale=1.0, size=3, **options):
    """Sample a model with every kind of variable."""
    with pm.Model():
        sigma = pm.HalfNormal("sigma")
        mu = pm.Normal("mu", 0, 5, shape=size)
        pm.Deterministic("total", mu.sum())
        pm.Normal("y", mu, sigma, observed=scale * np.arange(size))
        return sample(**options)


def compound(**options):
    with pm.Model():
        rate = pm.Poisson("rate", 3)
        mu = pm.Normal("mu", rate, 5, shape=3)
        pm.Normal("y", mu, 1, observed=np.arange(3.0))
        return sample(**options)


def one_method(method, **options):
    with pm.Model():
        mu = pm.Normal("mu", 0, 5, shape=3)
        pm.Normal("y", mu, 1, observed=np.arange(3.0))
        return sample(step=method([mu]), **options)


def divergent(**options):
    return nuts(Emax=0.05, **options)


def hmc(**options):
    return one_method(pm.HamiltonianMC, **options)


def history(**options):
    return one_method(pm.DEMetropolisZ, **options)


def sample(path=None, **options):
    given = {"draws": 20, "tune": TUNE, "chains": 2, "cores": 1, "random_seed": 1} | options
    # Also in the fixtures of the module, which are set up before the test's own mode.
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        return pm.sample(
            trace=None if path is None else mpimap.disk_trace(path),
            nuts_sampler="pymc",
            progressbar=False,
            compute_convergence_checks=False,
            discard_tuned_samples=False,
            **given,
        )


def assert_same(one, other):
    """Compare all that sampling returns, but for how long it took."""
    assert one.groups == other.groups
    for group in one.groups[1:]:
        for name in one[group].data_vars:
            if not any(time in name for time in TIMES):
                np.testing.assert_array_equal(one[group][name], other[group][name], name)


@pytest.fixture(scope="module")
def uninterrupted():
    return {function: function() for function in (nuts, divergent, compound, hmc, history)}


@pytest.mark.parametrize(
    ("function", "chain", "draw"),
    [
        (nuts, 0, 0),
        (nuts, 0, TUNE - 1),  # between the last draw of the warm-up and the end of tuning
        (nuts, 1, TUNE),
        (nuts, 1, TUNE + 19),
        (divergent, 0, TUNE + 10),
        (compound, 0, 10),
        (compound, 1, TUNE + 5),
        (hmc, 0, TUNE + 5),
        (history, 1, TUNE + 5),
    ],
)
def test_going_on_gives_the_same_draws(uninterrupted, tmp_path, function, chain, draw):
    with pytest.raises(StopError):
        function(path=tmp_path, callback=at(chain, draw, StopError))
    assert_same(function(path=tmp_path), uninterrupted[function])


def test_divergences_are_counted_across_the_break(uninterrupted):
    """So that the case above has some to count."""
    assert uninterrupted[divergent].sample_stats["divergences"][0, 10] > 0


def test_draws_are_made_once(uninterrupted, tmp_path, caplog):
    """A finished run is read, and a longer one only adds to it."""
    caplog.set_level(logging.INFO, "pymc")
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])
    before = (tmp_path / "chain-1.draws").read_bytes()
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])
    assert "Chain 1 is complete: 45 of 45 draws" in caplog.text
    assert_same(nuts(path=tmp_path, draws=30), nuts(draws=30))
    assert "Chain 1 goes on after 45 of 55 draws" in caplog.text
    assert (tmp_path / "chain-1.draws").read_bytes().startswith(before)


def test_ctrl_c_ends_all_chains_and_returns_all_draws(uninterrupted, tmp_path):
    some = nuts(path=tmp_path, callback=at(0, TUNE + 6, KeyboardInterrupt))
    assert some.posterior.sizes["chain"] == 1
    np.testing.assert_array_equal(
        some.posterior["mu"][0], uninterrupted[nuts].posterior["mu"][0, :7]
    )
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])
    # Of the chains after it, draws that are there already are among the result.
    both = nuts(path=tmp_path, draws=30, callback=at(0, TUNE + 22, KeyboardInterrupt))
    assert both.posterior.sizes["chain"] == 2
    assert_same(nuts(path=tmp_path, draws=30), nuts(draws=30))


def test_without_a_seed_a_chain_goes_on_by_its_own(tmp_path, caplog):
    caplog.set_level(logging.INFO, "pymc")
    with pytest.raises(StopError):
        nuts(path=tmp_path, random_seed=None, callback=at(1, 30, StopError))
    kept = mpimap.read_draws(tmp_path, warmup=True)
    nuts(path=tmp_path, random_seed=None)
    assert "It goes on with its own random numbers" in caplog.text
    for chain, draws in mpimap.read_draws(tmp_path, warmup=True).items():
        assert len(draws["mu"]) == 45
        np.testing.assert_array_equal(draws["mu"][: len(kept[chain]["mu"])], kept[chain]["mu"])


def test_a_half_written_draw_is_left_out_with_word_of_it(uninterrupted, tmp_path, caplog):
    with pytest.raises(StopError):
        nuts(path=tmp_path, callback=at(0, 30, StopError))
    path = tmp_path / "chain-0.draws"
    path.write_bytes(path.read_bytes()[:-5])
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])
    assert "only half written" in caplog.text


def test_draws_without_their_state_are_made_again_with_word_of_it(uninterrupted, tmp_path, caplog):
    with pytest.raises(StopError):
        nuts(path=tmp_path, callback=at(0, 30, StopError))
    state_file(tmp_path, 0, 31).write_bytes(b"")
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])
    assert "1 of them are made again" in caplog.text
    for path in tmp_path.glob("chain-0.state-*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no state of the sampler beside it is whole"):
        nuts(path=tmp_path, draws=30)
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])


def test_draws_that_a_loss_of_power_took_are_made_again_with_word_of_it(
    uninterrupted, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(writer, "_SYNC", float("inf"))  # after the first draw, whose state stays
    with pytest.raises(StopError):
        nuts(path=tmp_path, callback=at(0, 30, StopError))
    path = tmp_path / "chain-0.draws"
    overwrite(path, path.read_bytes()[: records(path)[2 + 20].start] + bytes(5000))
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])
    assert "of at least 30 draws that were made, the last 10 are not on disk" in caplog.text
    assert "19 of them are made again" in caplog.text
    assert "only half written" in caplog.text


def test_a_chain_that_was_ended_before_its_first_draw(uninterrupted, tmp_path):
    def stop(*_args, **_options):
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pm.NUTS, "step", stop)
        with pytest.raises(StopError):
            nuts(path=tmp_path)
    assert mpimap.read_draws(tmp_path)[0]["mu"].shape == (0, 3)
    with pytest.raises(InputError, match=r"target_accept was 0\.8, is 0\.9"):
        nuts(path=tmp_path, target_accept=0.9)
    assert_same(nuts(path=tmp_path), uninterrupted[nuts])


def test_read_draws(uninterrupted, tmp_path):
    with pytest.raises(StopError):
        nuts(path=tmp_path, callback=at(1, TUNE + 5, StopError))
    posterior = uninterrupted[nuts].posterior
    chains = mpimap.read_draws(tmp_path)
    assert [*chains] == [0, 1]
    for name in ("mu", "sigma", "total"):
        np.testing.assert_array_equal(chains[0][name], posterior[name][0])
        np.testing.assert_array_equal(chains[1][name], posterior[name][1, :6])
    assert mpimap.read_draws(tmp_path, warmup=True)[1]["mu"].shape == (TUNE + 6, 3)
    with pytest.raises(InputError, match="holds no draws"):
        mpimap.read_draws(tmp_path / "elsewhere")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept")
    nuts(path=path)
    return path


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"draws": 5}, "has 45 draws already, warm-up included, and only 30 are asked for"),
        ({"tune": 20, "draws": 30}, "by another tune: draw 20 was warm-up"),
        ({"tune": 30, "draws": 30}, "by another tune: draw 25 was no warm-up"),
        ({"target_accept": 0.9}, "target_accept was 0.8, is 0.9"),
        ({"max_treedepth": 5, "random_seed": 2}, "max_treedepth was 10, is 5"),
        ({"init": "adapt_diag"}, r"potential\.initial_mean was"),
        ({"size": 4}, r"mu was \(\(3,\), 'float64'\), is \(\(4,\), 'float64'\)"),
        ({"scale": 1.01}, "another model or other data: the log-density of draw 31 was"),
        ({"cores": 2}, r"pass cores=1 to pm\.sample"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(kept, changed, told):
    before = {path: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(InputError, match=told):
        nuts(path=kept, **changed)
    assert {path: path.read_bytes() for path in kept.iterdir()} == before


def test_another_kind_of_step_method_is_refused(tmp_path):
    hmc(path=tmp_path)
    with pytest.raises(
        InputError, match=r"HamiltonianMC\[0\]\.max_steps was 1024, is not there now"
    ):
        one_method(pm.NUTS, path=tmp_path)


def test_populations_are_refused(tmp_path):
    with pytest.raises(InputError, match="population of chains, such as DEMetropolis, are not"):
        one_method(pm.DEMetropolis, path=tmp_path, chains=4)


def test_paths_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pm.Model():
        pm.Normal("x")
        with pytest.raises(InputError, match="is a file"):
            mpimap.disk_trace(tmp_path / "file")
        with pytest.raises(InputError, match="holds 'file', which is none of the files"):
            mpimap.disk_trace(tmp_path)


def test_variables_can_be_chosen(tmp_path):
    with pm.Model():
        pm.Deterministic("twice", 2 * pm.HalfNormal("x"))
        with pytest.raises(InputError, match="no variable 'y'; it has x, twice"):
            mpimap.disk_trace(tmp_path, var_names=["y"])
        trace = mpimap.disk_trace(tmp_path, var_names=["twice"])
        options = {"tune": 10, "chains": 1, "progressbar": False, "random_seed": 1}
        options["compute_convergence_checks"] = False
        some = pm.sample(10, trace=trace, **options)
        more = pm.sample(20, trace=trace, **options)
    assert [*more.posterior.data_vars] == ["twice"]
    np.testing.assert_array_equal(more.posterior["twice"][:, :10], some.posterior["twice"])
    assert mpimap.read_draws(tmp_path)[0]["twice"].shape == (20,)
