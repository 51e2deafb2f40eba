"""Loops that hold vectorizable functions: in machine code, they do several at a time."""

import re
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap.vectormath.dispatch import processor_suits
from tests.helpers import quiet_function

pytestmark = pytest.mark.skipif(
    not processor_suits(), reason="this processor has no fused multiply-add"
)


def packed_calls(inputs, outputs, *arguments):
    """Return how many SIMD instructions of the polynomials are in a function's code."""
    with pytensor.config.change_flags(mode="NUMBA", numba__cache=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function = quiet_function(inputs, outputs)
        function(*arguments)
    code = function.vm.jit_fn
    text = "".join(code.inspect_llvm(signature) for signature in code.signatures)
    return len(re.findall(r"call [^\n]*@llvm\.fma\.v\d+f64", text))


def loops():
    theta, v, x, k = pt.dvector(), pt.dvector(), pt.dmatrix(), pt.lvector()
    values = np.linspace(-2, 2, 120)
    matrix, two, index = values.reshape(6, 20), np.ones(2), np.arange(120) % 7
    long = pt.log1p(v**2 * theta[0]) + pt.tanh(v) * pt.expm1(v + theta[1]) - pt.softplus(v)
    gathered = theta[k % 2] + v
    return {
        "vector": ([v], [pt.exp(v)], values),
        "rows and a vector": ([x, v], [pt.exp(x + v)], matrix, values[:20]),
        "strided": ([x], [pt.sigmoid(x.T * 2)], matrix),
        "long, with scalars": ([v, theta], [long, long.sum()], values, two),
        "gathered": ([v, theta, k], [pt.softplus(gathered).sum()], values, two, index),
        "added at indices": (
            [v, theta, k],
            [pt.zeros(7)[k].inc(pt.sigmoid(v * theta[0]))],
            values,
            two,
            index,
        ),
    }


@pytest.mark.parametrize("loop", loops())
def test_loops_are_simd_code(loop):
    assert packed_calls(*loops()[loop]) >= 8
