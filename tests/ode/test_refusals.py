"""What cannot be traced is refused: with the function, its line, and how to mend it."""

import math
import re
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap.errors import InputError
from tests.ode.right_hand_sides import trace


def line_of(marker):
    """Return the number of this file's line that ends in a comment."""
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(f"# {marker}"))


def branches(t, y, p):
    if y[0] > 1:  # branches
        return [1.0, 2.0, 3.0]
    return y


def branches_on_a_variable(t, y, p):
    return [0, 1, 2] if pt.exp(y[0]) > 1 else y  # branches_on_a_variable


def turns(t, y, p):
    while y[0] < 3:  # turns
        y = y + 1
    return y


def takes_max(t, y, p):
    return [max(y[0], 0), 0, 0]  # takes_max


def takes_max_of_objects(t, y, p):
    return np.maximum(np.array([y[0], 1.0, y[1]]), 0)  # takes_max_of_objects


def uses_math(t, y, p):
    return [math.exp(y[0]), 0, 0]  # uses_math


def uses_float(t, y, p):
    return [float(y[0]), 0, 0]  # uses_float


def uses_float_of_a_variable(t, y, p):
    return [float(pt.exp(y[0])), 0, 0]  # uses_float_of_a_variable


def fills_floats(t, y, p):
    dy = np.zeros(3)
    dy[0] = y[0]  # fills_floats
    return dy


def adds_to_floats(t, y, p):
    dy = np.zeros(3)
    dy += y  # adds_to_floats
    return dy


def fills_transposed(t, y, p):
    rates = np.zeros_like(p["K"])
    rates.T[0] = y  # fills_transposed
    return rates[0]


def has_no_twin(t, y, p):
    return np.fft.fft(y)  # has_no_twin


def exp_of_objects(t, y, p):
    return np.exp(np.array([y[0], 1.0, 2.0]))  # exp_of_objects


def joins_by_a_list(t, y, p):
    return pt.concatenate([y[:2], [y[2]]])  # joins_by_a_list


def fails(t, y, p):
    return p["missing"] * y  # fails


def mismatches(t, y, p):
    return np.ones((3, 4)) @ y  # mismatches


def fails_deeper(t, y, p):
    return fails(t, y, p)


def counts_wrong(t, y, p):  # counts_wrong
    return [y[0], y[1]]


def returns_nothing(t, y, p):  # returns_nothing
    y * 2


def returns_a_dict(t, y, p):  # returns_a_dict
    return {"a": y}


def returns_a_matrix(t, y, p):  # returns_a_matrix
    return p["K"]


def returns_vectors(t, y, p):  # returns_vectors
    return [y, y, y]


def is_complex(t, y, p):  # is_complex
    return y * 1j


def is_not_finite(t, y, p):  # is_not_finite
    return [y[0], np.nan, y[1]]


def takes_too_few(t, y):  # takes_too_few
    return y


def solves(t, y, p):
    return np.linalg.solve(p["K"], y)  # solves


def scans(t, y, p):
    return pytensor.scan(lambda x: x + 1, sequences=[y], return_updates=False)  # scans


def asserts(t, y, p):
    return pytensor.raise_op.Assert("positive")(y * 1, pt.all(y > 0))  # asserts


def chooses(t, y, p):
    return y[y > 1]  # chooses


REFUSED = {
    branches: "np.where",
    branches_on_a_variable: "pt.switch",
    turns: "for i in range",
    takes_max: r"np\.maximum\(a, b\)",
    takes_max_of_objects: r"np\.stack",
    uses_math: r"np\.exp in place of math\.exp",
    uses_float: r"np\.exp",
    uses_float_of_a_variable: r"np\.exp",
    fills_floats: r"np\.zeros_like\(y\)",
    adds_to_floats: r"np\.zeros_like\(y\)",
    fills_transposed: "transposed",
    has_no_twin: r"fft.*no twin",
    exp_of_objects: r"np\.stack",
    joins_by_a_list: r"pt\.stack",
    fails: "KeyError: 'missing'",
    mismatches: "ValueError",
    counts_wrong: "2 derivatives, and there are 3 states",
    returns_nothing: "None.*return is missing",
    returns_a_dict: "dict",
    returns_a_matrix: "2 dimensions",
    returns_vectors: r"entry 0 .*\(3,\)",
    is_complex: "complex",
    is_not_finite: r"nan for dy\[1\]",
    takes_too_few: "TypeError",
    solves: "Solve",
    scans: "Scan",
    asserts: "Assert.*condition",
    chooses: "AdvancedSubtensor.*index",
}


@pytest.mark.parametrize("rhs", REFUSED, ids=lambda f: f.__name__)
def test_a_refusal_names_function_line_and_remedy(rhs):
    with pytest.raises(InputError) as caught:
        trace(rhs)
    message, line = str(caught.value), line_of(rhs.__name__)
    source = Path(__file__).read_text().splitlines()[line - 1].strip()
    assert message.startswith(rhs.__name__)
    assert f"{__file__}, line {line}" in message
    assert source in message
    assert re.search(REFUSED[rhs], message, re.DOTALL)


def test_a_refusal_keeps_its_cause_and_names_the_innermost_line():
    with pytest.raises(InputError, match=f"line {line_of('fails')}") as caught:
        trace(fails_deeper)
    assert isinstance(caught.value.__cause__, KeyError)
