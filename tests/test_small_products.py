"""Products of small matrices with vectors, in loops instead of calls of BLAS."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings, strategies as st
from pytensor.compile.mode import get_mode
from pytensor.tensor.blas import BatchedDot

from pymc_mpimap import SerialPool, map_rect
from pymc_mpimap.vectormath.ops import MatricesTimesVectors
from pymc_mpimap.vectormath.rewriting import vectorizing
from tests.helpers import assert_same_bits


def compiled(rows, columns, *, transposed=False):
    x = pt.dtensor3("x", shape=(None, rows, columns))
    v = pt.dmatrix("v", shape=(None, rows if transposed else columns))
    matrices = x.transpose((0, 2, 1)) if transposed else x
    return pytensor.function(
        [x, v], pt.matmul(matrices, v[:, :, None])[:, :, 0], mode=vectorizing(get_mode("NUMBA"))
    )


def ops_of(function):
    return {type(node.op) for node in function.maker.fgraph.apply_nodes}


@pytest.mark.parametrize("transposed", [False, True])
def test_small_ones_are_loops(transposed):
    function = compiled(7, 3, transposed=transposed)
    assert MatricesTimesVectors in ops_of(function)
    random = np.random.default_rng(1)
    x, v = random.normal(size=(5, 7, 3)), random.normal(size=(5, 7 if transposed else 3))
    matrices = x.swapaxes(1, 2) if transposed else x
    expected = (matrices @ v[:, :, None])[:, :, 0]
    np.testing.assert_allclose(function(x, v), expected, rtol=1e-14)
    # Parts of larger arrays, as blocks of jobs are.
    wide = np.repeat(x, 2, axis=2)[:, :, ::2]
    assert_same_bits(function(wide, v), function(x, v))
    assert function(x[:0], v[:0]).shape == (0, 3 if transposed else 7)


def test_large_ones_and_unknown_ones_stay():
    assert MatricesTimesVectors not in ops_of(compiled(100, 20))
    assert MatricesTimesVectors not in ops_of(compiled(None, 3))
    x, y = pt.dtensor3(shape=(None, 3, 3)), pt.dtensor3(shape=(None, 3, 2))
    matrices = pytensor.function([x, y], pt.matmul(x, y), mode=vectorizing(get_mode("NUMBA")))
    assert BatchedDot in ops_of(matrices)
    plain = pytensor.function([x, y], pt.matmul(x, y[:, :, :1]), mode="NUMBA")
    assert MatricesTimesVectors not in ops_of(plain)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_each_product_is_the_same_in_any_block(function_of_3_by_4, n, seed):
    random = np.random.default_rng(seed)
    x, v = random.normal(size=(n, 3, 4)), random.normal(size=(n, 4))
    together = function_of_3_by_4(x, v)
    for i in range(n):
        assert_same_bits(together[i], function_of_3_by_4(x[i : i + 1], v[i : i + 1])[0])


@pytest.fixture(scope="module")
def function_of_3_by_4():
    return compiled(3, 4)


def test_in_jobs_with_their_gradients():
    """Jobs of 20 observations with 5 coefficients each, against NumPy."""
    random = np.random.default_rng(2)
    data, jobs = random.normal(size=(6, 20, 5)), pt.dmatrix("jobs", shape=(6, 5))
    with pytensor.config.change_flags(mode="NUMBA"):
        total = map_rect(lambda _t, b, x: pt.softplus(x @ b).sum(), None, jobs, data).sum()
        function = pytensor.function([jobs], [total, pt.grad(total, jobs)])
        point = random.normal(size=(6, 5))
        with SerialPool():
            value, gradient = function(point)
    eta = np.einsum("jik,jk->ji", data, point)
    np.testing.assert_allclose(value, np.logaddexp(0, eta).sum(), rtol=1e-13)
    expected = np.einsum("jik,ji->jk", data, 1 / (1 + np.exp(-eta)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-13)
