"""Matrices of a few columns: what PyTensor fills in one column at a time is done in one loop."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.elemwise import Elemwise

from pymc_mpimap import SerialPool, map_rect
from pymc_mpimap.vectormath import ops
from pymc_mpimap.vectormath.dispatch import processor_suits
from pymc_mpimap.vectormath.rewriting import _columns_of, has_rows
from tests.helpers import assert_same_bits, quiet_function

pytestmark = pytest.mark.skipif(
    not processor_suits(), reason="this processor has no fused multiply-add"
)


def compiled(inputs, outputs):
    with pytensor.config.change_flags(mode="NUMBA"):
        return quiet_function(inputs, outputs)


def ops_of(function):
    return {type(node.op) for node in function.maker.fgraph.apply_nodes}


def filled(x, y, *, n_columns=4):
    """Return a matrix of zeros with columns set and added to, one of them twice, one never."""
    matrix = pt.zeros((x.shape[0], n_columns))
    matrix = pt.inc_subtensor(matrix[:, 2], x)
    matrix = pt.set_subtensor(matrix[:, 0], y)
    matrix = pt.inc_subtensor(matrix[:, -2], y)
    return pt.inc_subtensor(matrix[:, 3], x * y)


def test_one_loop_fills_in_all_columns():
    n, x, y = pt.lscalar("n"), *pt.dvectors("x", "y")
    function = compiled([n, x, y], [filled(has_rows(x, n), has_rows(y, n))])
    assert ops_of(function) == {ops.Columns, Elemwise}
    a, b = np.array([1.0, -2.0, np.nan]), np.array([0.5, 4.0, 1.0])
    expected = np.stack([b, np.zeros(3), a + b, a * b], axis=1)
    assert_same_bits(function(3, a, b)[0], expected)
    assert function(0, a[:0], b[:0])[0].shape == (0, 4)
    # Views, whose numbers are not one after the other.
    assert_same_bits(function(3, np.repeat(a, 2)[::2], b)[0], expected)


def test_vectors_whose_length_is_not_known_to_be_the_matrix_s_stay():
    x, y = pt.dvectors("x", "y")
    matrix = pt.inc_subtensor(pt.zeros((x.shape[0], 3))[:, 1], y)
    function = compiled([x, y], [matrix])
    assert ops.Columns not in ops_of(function)
    value = function(np.ones(2), np.full(1, 5.0))[0]
    assert_same_bits(value, np.array([[0.0, 5.0, 0.0]] * 2))


def test_a_later_value_replaces_an_earlier_one():
    x, y = pt.dvectors("x", "y")
    matrix = pt.set_subtensor(pt.inc_subtensor(pt.zeros((x.shape[0], 2))[:, 1], x)[:, 1], y)
    (value,) = compiled([x, y], [matrix])(np.ones(2), np.full(2, 5.0))
    assert_same_bits(value, np.array([[0.0, 5.0], [0.0, 5.0]]))


def test_set_and_added():
    """As it would be found in a graph that PyTensor has not simplified."""
    x, y = pt.dvectors("x", "y")
    zeros = pt.alloc(0.0, x.shape[0], 2)
    added = pt.inc_subtensor(zeros[:, 1], x)
    assert _columns_of(zeros) == {}
    assert _columns_of(added) == {1: x}
    assert _columns_of(pt.set_subtensor(added[:, 1], y)) == {1: y}
    assert _columns_of(pt.set_subtensor(added[:, 0], y)) == {1: x, 0: y}
    twice = _columns_of(pt.inc_subtensor(added[:, -1], y))
    assert_same_bits(twice[1].eval({x: [1.0], y: [2.0]}), np.array([3.0]))


def test_columns_of_different_lengths_are_refused():
    x, y = pt.dvectors("x", "y")
    function = compiled([x, y], [ops.Columns(2, (0, 1))(x, y)])
    with pytest.raises(ValueError, match="different lengths"):
        function(np.ones(3), np.ones(2))


def test_a_number_for_all_rows():
    """A vector that turns out to be of one number, as PyTensor lets it be."""
    x, y = pt.dvectors("x", "y")
    matrix = pt.inc_subtensor(pt.zeros((x.shape[0], 3))[:, 1], x)
    matrix = pt.inc_subtensor(matrix[:, 0], y)
    function = compiled([x, y], [matrix])
    assert ops.Columns in ops_of(function)
    a, b = np.array([1.0, 2.0, 3.0]), np.array([5.0])
    plain = pytensor.function([x, y], matrix, mode="FAST_COMPILE")
    assert_same_bits(function(a, b)[0], plain(a, b))


@pytest.mark.parametrize("index", [4, -5])
def test_an_index_that_there_is_not(index):
    x = pt.dvector("x")
    function = compiled([x], [pt.inc_subtensor(pt.zeros((x.shape[0], 4))[:, index], x)])
    with pytest.raises(IndexError):
        function(np.ones(2))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, k, base: pt.inc_subtensor(base[:, 1], x),
        lambda x, k, base: pt.inc_subtensor(pt.zeros((x.shape[0], 3))[:, k], x),
        lambda x, k, base: pt.inc_subtensor(pt.zeros((x.shape[0], 3))[:, 1:], x[:, None]),
        lambda x, k, base: pt.inc_subtensor(pt.zeros((x.shape[0], 3))[:, 1], x[0]),
        lambda x, k, base: pt.inc_subtensor(pt.zeros((x.shape[0], 40))[:, 1], x),
        lambda x, k, base: pt.inc_subtensor(pt.ones((x.shape[0], 3))[:, 1], x),
        lambda x, k, base: pt.inc_subtensor(pt.zeros((2, x.shape[0]))[1], x),
        lambda x, k, base: pt.inc_subtensor(pt.zeros((k + 1, 3))[:, 1], x),
    ],
    ids=["given", "which", "several", "number", "many", "ones", "row", "rows"],
)
def test_others_stay(change):
    x, k, base = pt.dvector("x"), pt.lscalar("k"), pt.dmatrix("base")
    matrix = change(x, k, base)
    function = compiled([x, k, base], [matrix])
    assert ops.Columns not in ops_of(function)
    point = np.array([1.0, 2.0]), np.array(1), np.full((2, 3), 7.0)
    plain = pytensor.function([x, k, base], matrix, mode="FAST_COMPILE", on_unused_input="ignore")
    assert_same_bits(function(*point)[0], plain(*point))


def test_gradients_of_elements_of_a_vector():
    """What the columns are for."""
    theta, jobs = pt.dvector("theta", shape=(3,)), pt.dmatrix("jobs", shape=(2, 2))

    def f(theta, job):
        return theta[0] * job[0] + pt.exp(theta[2]) * job[1]

    with pytensor.config.change_flags(mode="NUMBA"):
        total = map_rect(f, theta, jobs).sum()
        function = pytensor.function([theta, jobs], pt.grad(total, [theta, jobs]))
        with SerialPool():
            by_theta, by_jobs = function([1.0, 2.0, 0.0], np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(by_theta, [4.0, 0.0, 6.0])
    np.testing.assert_array_equal(by_jobs, [[1.0, 1.0], [1.0, 1.0]])
