"""Sums, in 64 lanes or of rows: where they are, and that their bits depend on the terms alone."""

import math

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap.vectormath import ops
from pymc_mpimap.vectormath.dispatch import processor_suits
from tests.helpers import quiet_function

pytestmark = pytest.mark.skipif(
    not processor_suits(), reason="this processor has no fused multiply-add"
)


def summed(*axes, ndim):
    x = pt.TensorType("float64", (None,) * ndim)()
    with pytensor.config.change_flags(mode="NUMBA"):
        return quiet_function([x], [x.sum(axis=axes or None)])


@pytest.mark.parametrize(
    "shape", [(0,), (1,), (63,), (64,), (1000,), (3, 70), (2, 3, 200), (0, 5), (4, 0)]
)
def test_sums_of_last_axes(shape):
    x = np.random.default_rng(3).standard_normal(shape)
    for n_kept in range(x.ndim):
        axes = tuple(range(n_kept, x.ndim))
        function = summed(*axes, ndim=x.ndim)
        assert [type(node.op) for node in function.maker.fgraph.apply_nodes] == [ops.LaneSum]
        (value,) = function(x)
        assert value.shape == shape[:n_kept]
        np.testing.assert_allclose(value, x.sum(axis=axes), rtol=1e-13, atol=1e-13)


def test_a_sum_depends_on_nothing_but_its_terms_and_their_order():
    x = np.random.default_rng(4).standard_normal((5, 333))
    (rows,) = summed(1, ndim=2)(x)
    (strided,) = summed(1, ndim=2)(np.asfortranarray(x))
    alone = [summed(ndim=1)(row)[0] for row in x]
    np.testing.assert_array_equal(rows, strided)
    np.testing.assert_array_equal(rows, alone)
    assert rows[0] == pytest.approx(math.fsum(x[0]), abs=1e-13)


@pytest.mark.parametrize("shape", [(3, 70), (1, 2), (5, 3, 2), (0, 5), (4, 0)])
def test_sums_of_first_axes(shape):
    x = np.random.default_rng(5).standard_normal(shape)
    for n_summed in range(1, x.ndim):
        function = summed(*range(n_summed), ndim=x.ndim)
        assert [type(node.op) for node in function.maker.fgraph.apply_nodes] == [ops.StackSum]
        (value,) = function(x)
        (of_a_view,) = function(np.asfortranarray(x))
        expected = np.zeros(shape[n_summed:])
        for row in x.reshape(-1, *shape[n_summed:]) if x.size else ():
            expected += row  # One after the other, so that the bits are equal.
        np.testing.assert_array_equal(value, expected, strict=True)
        np.testing.assert_array_equal(of_a_view, expected, strict=True)


def test_other_reductions_stay():
    x, n, y = pt.dmatrix(), pt.lvector(), pt.dtensor3()
    outputs = [
        x.prod(axis=1),
        n.sum(),
        n.astype("float32").sum(),
        y.sum(axis=1),
        y.sum(axis=(0, 2)),
    ]
    with pytensor.config.change_flags(mode="NUMBA"):
        function = quiet_function([x, n, y], outputs)
    found = {type(node.op) for node in function.maker.fgraph.apply_nodes}
    assert not found & {ops.LaneSum, ops.StackSum}
