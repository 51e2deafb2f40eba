"""JAX functions inside of traced jobs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor import wrap_jax

from pymc_mpimap import map_rect
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
