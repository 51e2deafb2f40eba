"""JAX functions inside of traced jobs, and maps inside of JAX functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.sampling.jax import get_jaxified_graph
from pytensor import wrap_jax

from pymc_mpimap import DerivativeError, map_rect, numeric_job
from tests.helpers import assert_equals_plain, in_modes, without_map_rect


@pytest.fixture(autouse=True)
def double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@wrap_jax
def decay(theta, t):
    return jnp.exp(-theta[0] * t) * theta[1]


def job(theta, own, x):
    return ((decay(theta, x) - own) ** 2).sum()


@pytest.mark.slow
@in_modes("FAST_COMPILE", "NUMBA")
@pytest.mark.filterwarnings("ignore:Numba will use object mode:UserWarning")  # of the plain model
@pytest.mark.parametrize("ragged", [False, True])
def test_value_and_gradient(ragged):
    theta, own = pt.dvector("theta", shape=(2,)), pt.dvector("own", shape=(4,))
    if ragged:
        # JAX wants sizes that are known when the job is traced: one of them, in a cut of its own.
        x = [np.arange(3.0 + k) for k in range(4)]

        def f(theta, own, x):
            return job(theta, own, pt.specify_shape(x[:2], (2,)))
    else:
        x, f = np.arange(12.0).reshape(4, 3), job
    point = {theta: np.array([0.3, 2.0]), own: np.linspace(0.1, 1, 4)}
    plain = without_map_rect(f, theta, own, [np.asarray(row) for row in x])
    assert_equals_plain(map_rect(f, theta, own, x), plain, point)


def plain(theta, own, x):
    return pt.exp(-theta[0] * x).sum() * theta[1] - own


@numeric_job
def numeric(theta, own, x):
    decays = np.exp(-theta[0] * x)
    value = decays.sum() * theta[1] - own
    return value, np.array([-(x * decays).sum() * theta[1], decays.sum()]), -1.0


POINT = [np.array([0.3, 2.0]), np.linspace(0.1, 1, 4)]


@pytest.mark.parametrize("f", [plain, numeric], ids=["traced", "numeric"])
@pytest.mark.parametrize("ragged", [False, True])
def test_jax_derives_a_map(f, ragged):
    """As samplers do that are written in JAX: compiled, and for several points at once."""
    theta, own = pt.dvector("theta", shape=(2,)), pt.dvector("own", shape=(4,))
    x = [np.arange(3.0 + k) for k in range(4)] if ragged else np.arange(12.0).reshape(4, 3)
    total = (map_rect(f, theta, own, x) ** 2).sum()
    of_jax = get_jaxified_graph([theta, own], [total])
    expected = pytensor.function([theta, own], [total, *pt.grad(total, [theta, own])])
    derive = jax.jit(jax.value_and_grad(lambda *point: of_jax(*point)[0], argnums=(0, 1)))
    value, gradients = derive(*POINT)
    for got, wanted in zip([value, *gradients], expected(*POINT), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13)
    several = [np.stack([1.5 * part, part]) for part in POINT]
    values, gradients = jax.vmap(derive)(*several)
    for got, wanted in zip([values, *gradients], expected(*POINT), strict=True):
        np.testing.assert_allclose(got[1], wanted, rtol=1e-13)


def test_jax_is_refused_a_derivative_that_a_job_does_not_give():
    """Only where it is asked for."""

    @numeric_job(without=["job"])
    def half(theta, own):
        return theta.sum() * own, np.full(2, own)

    theta, own = pt.dvector("theta", shape=(2,)), pt.dvector("own", shape=(4,))
    of_jax = get_jaxified_graph([theta, own], [map_rect(half, theta, own).sum()])
    (gradient,) = jax.grad(lambda theta: of_jax(theta, POINT[1])[0], argnums=(0,))(POINT[0])
    np.testing.assert_allclose(gradient, np.full(2, POINT[1].sum()))
    with pytest.raises(DerivativeError, match="half gives no derivative"):
        jax.grad(lambda own: of_jax(POINT[0], own)[0])(POINT[1])
