"""An error of a job ends whatever samples or optimizes, each time, and is raised as it is."""

import _thread
import functools
import gc
import threading
import weakref
from types import ModuleType

import numpy as np
import pymc as pm
import pytest

from pymc_mpimap import JobError, MapRectWarning, SerialPool, map_rect, numeric_job
from pymc_mpimap.samplers import guards

QUIET = {"progressbar": False, "compute_convergence_checks": False}


def likelihood(mu, limit=1.0, **options):
    """Return a sum of jobs that raise where mu is above the limit."""

    @numeric_job
    def job(mu, _j, y):
        if mu > limit:
            raise ZeroDivisionError("mu is too large")
        r = y - mu
        return -0.5 * (r @ r), r.sum()

    return map_rect(job, mu, 3, np.full((3, 1), 3.0), **options).sum()


def build(initval=0.5, **options):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10, initval=initval)
        pm.Potential("y", likelihood(mu, **options))
    return model


def sampled(*, draws=60, tune=60, chains=1, cores=1, **options):
    def sample(model, seed):
        with model:
            return pm.sample(
                draws, tune=tune, chains=chains, cores=cores, random_seed=seed, **QUIET, **options
            )

    return sample


def by_nutpie(backend, *, blocking=True):
    def sample(model, seed):
        import nutpie

        compiled = nutpie.compile_pymc_model(model, backend=backend)
        options = {"draws": 200, "tune": 100, "chains": 2, "cores": 2, "progress_bar": False}
        sampler = nutpie.sample(compiled, seed=seed, blocking=blocking, **options)
        return sampler if blocking else sampler.wait()

    return sample


def by_numpyro_itself(model, seed):
    import jax
    from numpyro.infer import MCMC, NUTS
    from pymc.sampling.jax import get_jaxified_logp

    kernel = NUTS(potential_fn=get_jaxified_logp(model, negative_logp=False))
    chain = MCMC(kernel, num_warmup=50, num_samples=50, progress_bar=False)
    chain.run(jax.random.PRNGKey(seed), init_params=[np.array(0.5)])


def smc(cores):
    def sample(_, seed):
        with build(initval=None):  # of the prior's draws, some are too large
            pm.sample_smc(50, chains=2, cores=cores, random_seed=seed, **QUIET)

    return sample


def fitted(method):
    def fit(model, seed):
        with model:
            pm.fit(3000, method=method, random_seed=seed, progressbar=False)

    return fit


def of_what_is_stored(sampler):
    """A map that is not part of the density, but evaluated for each draw that is kept."""

    def sample(_, seed):
        with pm.Model() as model:
            pm.Deterministic("y", likelihood(pm.Normal("mu", 5, 1)))
        sampled(nuts_sampler=sampler)(model, seed)

    return sample


def find_map(model, _):
    with model:
        pm.find_MAP(progressbar=False)


def called(mode):
    return lambda model, _: model.compile_logp(mode=mode)({"mu": np.array(2.0)})


slow = functools.partial(pytest.param, marks=pytest.mark.slow)

IN_THREADS_OF_ITS_OWN = [
    slow(sampled(nuts_sampler="nutpie"), id="pm.sample, nutpie"),
    slow(sampled(nuts_sampler="nutpie", backend="jax"), id="pm.sample, nutpie by JAX"),
    slow(by_nutpie("numba"), id="nutpie"),
    slow(by_nutpie("numba", blocking=False), id="nutpie in the background"),
    slow(by_nutpie("jax"), id="nutpie by JAX"),
    slow(by_nutpie("jax", blocking=False), id="nutpie by JAX in the background"),
]
BY_JAX = [
    slow(sampled(nuts_sampler="numpyro"), id="numpyro"),
    slow(sampled(nuts_sampler="numpyro", chains=2), id="numpyro, two chains"),
    slow(by_numpyro_itself, id="numpyro by itself"),
    slow(sampled(nuts_sampler="blackjax"), id="blackjax"),
    slow(
        sampled(nuts_sampler="blackjax", chains=2, nuts={"chain_method": "vectorized"}),
        id="blackjax, two chains",
    ),
    slow(of_what_is_stored("numpyro"), id="numpyro, of what is stored"),
    pytest.param(called("JAX"), id="a function by JAX"),
]
OTHERS = [
    slow(sampled(), id="pm.sample"),
    slow(of_what_is_stored("nutpie"), id="nutpie, of what is stored"),
    pytest.param(sampled(nuts_sampler="pymc"), id="pymc"),
    pytest.param(sampled(nuts_sampler="pymc", chains=2, cores=2), id="pymc, two processes"),
    pytest.param(
        lambda model, seed: sampled(
            draws=300, chains=4, cores=2, step=pm.DEMetropolis(model=model)
        )(model, seed),
        id="a population in processes",
    ),
    pytest.param(smc(1), id="smc"),
    pytest.param(smc(2), id="smc, two processes"),
    slow(fitted("advi"), id="advi"),
    pytest.param(find_map, id="find_MAP"),
    pytest.param(called("FAST_COMPILE"), id="a function"),
    slow(called("NUMBA"), id="a function by numba"),
]

# Not of this package: JAX's and ArviZ's about versions, and PyMC's that it forks beside threads.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning", "RuntimeWarning")
]


@pytest.fixture
def _not_interrupted(monkeypatch):
    """The error itself reaches the user: the main thread is not struck by another one."""
    struck = []
    monkeypatch.setattr(_thread, "interrupt_main", lambda *_: struck.append("once"))
    yield
    assert struck == []


def fails(way, seed):
    """Return the error of a run."""
    with pytest.raises(JobError) as caught:
        way(build(), seed)
    assert caught.value.failure.exception == "ZeroDivisionError: mu is too large"
    return caught.value


@pytest.mark.usefixtures("_not_interrupted")
@pytest.mark.parametrize("way", [*IN_THREADS_OF_ITS_OWN, *BY_JAX, *OTHERS])
def test_an_error_is_raised_each_time(way, request):
    for seed in (1, 2):
        error = fails(way, seed)
        if "process" not in request.node.callspec.id:
            assert type(error.__cause__) is ZeroDivisionError


@pytest.mark.usefixtures("_not_interrupted")
@pytest.mark.parametrize("way", [*IN_THREADS_OF_ITS_OWN, *BY_JAX[-1:], *OTHERS[3:4]])
def test_an_error_is_raised_each_time_within_a_pool(way):
    with SerialPool():
        for seed in (1, 2):
            fails(way, seed)


@pytest.mark.usefixtures("_not_interrupted")
@pytest.mark.parametrize("way", [*IN_THREADS_OF_ITS_OWN[::2], *BY_JAX[-1:], *OTHERS[-3:]])
def test_an_error_is_raised_each_time_in_a_thread_of_the_users(way):
    errors = []
    for seed in (1, 2):
        thread = threading.Thread(target=lambda seed=seed: errors.append(fails(way, seed)))
        thread.start()
        thread.join()
    assert len(errors) == 2


def background(model, **options):
    import nutpie

    compiled = nutpie.compile_pymc_model(model)
    return nutpie.sample(
        compiled, chains=2, cores=2, seed=1, progress_bar=False, blocking=False, **options
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_not_interrupted")
def test_no_way_leads_to_the_draws_of_a_run_that_failed():
    sampler = background(build(), draws=10**6)
    for way in (sampler.wait, sampler.inspect, sampler.abort, sampler.wait):
        with pytest.raises(JobError):
            way()
    sampler.cancel()


@pytest.mark.slow
@pytest.mark.usefixtures("_not_interrupted")
def test_the_chains_have_ended_when_their_error_is_raised():
    """Else the garbage collector ends them, in whatever thread it runs."""
    sampler = background(build(), draws=10**6)

    def inspect_until_it_raises():
        while True:
            sampler.inspect()

    with pytest.raises(JobError):
        inspect_until_it_raises()
    assert sampler.is_finished


@pytest.mark.slow
def test_the_garbage_collector_may_end_the_chains_from_one_of_them():
    """The chain holds the lock of the pool then, and would wait for itself."""
    dropped, collected = threading.Event(), threading.Event()

    @numeric_job
    def job(mu, _j):
        if dropped.is_set() and not collected.is_set():
            gc.collect()
            collected.set()
        return -0.5 * mu**2, -mu

    with pm.Model() as model:
        pm.Potential("y", map_rect(job, pm.Normal("mu"), 1).sum())
    sampler = background(model, draws=10**7)
    ended = weakref.ref(sampler)
    sampler.itself = sampler
    del sampler
    dropped.set()
    assert collected.wait(60)
    for thread in threading.enumerate():
        if thread.name == "ends chains":
            thread.join(60)
            assert not thread.is_alive()
    gc.collect()
    assert ended() is None


@pytest.mark.slow
@pytest.mark.usefixtures("_not_interrupted")
def test_an_error_ends_the_run_whose_it_is():
    """Of two that run at the same time."""
    good = background(build(limit=np.inf), draws=1500)
    bad = background(build(), draws=10**6)
    with pytest.raises(JobError):
        bad.wait()
    assert good.wait().posterior["mu"].shape == (2, 1500)


@pytest.mark.slow
def test_a_time_limit_of_nutpies_is_kept():
    sampler = background(build(limit=np.inf), draws=10**7)
    for seconds in (0.0, 0.01, 0.12):
        with pytest.raises(TimeoutError):
            sampler.wait(timeout=seconds)
    assert sampler.inspect().posterior["mu"].shape[0] == 2
    sampler.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["nutpie", "numpyro"])
def test_proposals_are_rejected_where_that_was_asked_for(sampler):
    with SerialPool() as pool:
        draws = sampled(nuts_sampler=sampler)(build(on_error="reject"), 1).posterior["mu"]
        assert draws.shape == (1, 60)
        assert float(draws.max()) <= 1.0
        (reason,) = pool.report().reasons
        assert reason.text == "ZeroDivisionError: mu is too large"


@pytest.mark.slow
def test_ctrl_c_returns_the_draws_so_far():
    """Not in a job's own thread, but where it is waited for."""
    calls = []

    @numeric_job
    def job(mu, _j):
        calls.append(mu)
        if len(calls) == 2000:
            _thread.interrupt_main()
        return -0.5 * mu**2, -mu

    with pm.Model() as model:
        pm.Potential("y", map_rect(job, pm.Normal("mu"), 1).sum())
    draws = sampled(nuts_sampler="nutpie", draws=10**7)(model, 1).posterior["mu"]
    assert draws.size < 10**6


def test_ctrl_c_in_a_callback_of_jax_is_ctrl_c():
    def raises(*_):
        raise KeyboardInterrupt

    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Potential("y", map_rect(numeric_job(derivatives=None)(raises), mu, 1).sum())
    with pytest.raises(KeyboardInterrupt):
        model.compile_logp(mode="JAX")({"mu": np.array(0.0)})


def test_a_sampler_that_is_another_than_expected_is_told_of():
    with pytest.warns(MapRectWarning, match="nutpie.sample is not as it was"):
        guards._guard(ModuleType("nutpie.sample"))


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_threads_of_an_unknown_sampler_interrupt_the_main_thread_once_each_time(monkeypatch):
    struck = []
    monkeypatch.setattr(_thread, "interrupt_main", lambda: struck.append("once"))
    pool = SerialPool()
    first = ValueError("nobody sees it")

    def raises_twice():
        pool.escalate(first)
        pool.escalate(ValueError("nor this"))

    def run():
        with pool:
            for strikes in (1, 2):
                in_a_thread(raises_twice)
                assert len(struck) == strikes

    with pytest.raises(ValueError, match="nobody sees it"):
        run()
