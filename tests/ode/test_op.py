"""SolveIVP as a value and as an Op of PyTensor, and the arguments of `solve_ivp`."""

import copy
import pickle
import subprocess
import sys

import cloudpickle
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.debug.debugmode import DebugMode

from pymc_mpimap import Doses, Steps, solve_ivp
from pymc_mpimap.errors import InputError
from pymc_mpimap.ode.system import LEAVES, T0, TS, Y0
from tests.helpers import assert_same_bits, in_modes
from tests.ode.helpers import (
    POINT,
    TIMES,
    compiled,
    node_of,
    predators,
    solution,
    solves,
    the_inputs,
    vector,
    with_derivatives,
)

# Values.


def test_traced_twice_is_equal():
    """Every solve of one model, traced anew for each job, is the same Op."""
    one, other = (solution(the_inputs()).owner.op for _ in range(2))
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert one.with_sensitivities((Y0, T0)) == other.with_sensitivities((T0, Y0))


def test_what_makes_ops_differ():
    inputs = the_inputs()
    op = solution(inputs).owner.op

    def another(t, y, p):
        return [-y[0] * p["growth"], p["rates"][0] - p["rates"][1] * y[1]]

    different = {
        "function": solution(inputs, another),
        "method": solution(inputs, method="bdf"),
        "rtol": solution(inputs, rtol=1e-7),
        "atol": solution(inputs, atol=1e-7),
        "atol of a state": solution(inputs, atol=[1e-6, 1e-7]),
        "first step": solution(inputs, first_step=0.1),
        "steps": solution(inputs, max_steps=7),
        "doses": solution(inputs, doses=Doses([], [])),
    }
    ops = {what: y.owner.op for what, y in different.items()}
    ops["sensitivities"] = op.with_sensitivities((Y0,))
    for what, other in ops.items():
        assert other != op, what
    assert len({op, *ops.values()}) == 1 + len(ops)
    assert solution(inputs, atol=[1e-6, 1e-6]).owner.op == op
    # The times of breaks are inputs; only that there are any is known to the Op.
    assert solution(inputs, breaks=[]).owner.op == op
    with_breaks = solution(inputs, breaks=[1.0]).owner.op
    assert with_breaks != op
    assert with_breaks == solution(inputs, breaks=[2.0, 3.0]).owner.op


@pytest.mark.parametrize("way", ["pickle", "cloudpickle", "copy", "deepcopy"])
def test_copies_are_equal(way):
    op = solution(the_inputs()).owner.op.with_sensitivities((Y0, LEAVES))
    hash(op)  # What is remembered of it must not travel.
    again = {
        "pickle": lambda op: pickle.loads(pickle.dumps(op)),
        "cloudpickle": lambda op: cloudpickle.loads(cloudpickle.dumps(op)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }[way](op)
    assert again == op
    assert hash(again) == hash(op)
    assert again.wrt == op.wrt


def test_a_pickled_graph_is_solved_elsewhere():
    """In a process that has not even loaded the package, and with a hash of its own."""
    inputs = the_inputs()
    y = solution(inputs)
    outputs = [y, *pt.grad(y.sum(), list(inputs.values()))]
    expected = pytensor.function(list(inputs.values()), outputs)(*POINT.values())
    script = (
        "import sys, pickle, pytensor\n"
        "inputs, outputs, point, op = pickle.load(sys.stdin.buffer)\n"
        "assert outputs[0].owner.op == op and hash(outputs[0].owner.op) == hash(op)\n"
        "with pytensor.config.change_flags(mode='FAST_COMPILE', cxx=''):\n"
        "    results = pytensor.function(inputs, outputs)(*point)\n"
        "sys.stdout.buffer.write(pickle.dumps(results))\n"
    )
    op = solution(the_inputs()).owner.op
    hash(op)
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        input=cloudpickle.dumps((list(inputs.values()), outputs, list(POINT.values()), op)),
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert_same_bits(pickle.loads(answer.stdout), expected)


def test_a_pickled_function_solves_again():
    inputs = the_inputs()
    y = solution(inputs)
    f = pytensor.function(list(inputs.values()), [y, pt.grad(y.sum(), inputs["rates"])])
    again = pickle.loads(cloudpickle.dumps(f))
    assert_same_bits(again(*POINT.values()), f(*POINT.values()))


def test_string_names_the_function():
    assert "predators" in str(solution(the_inputs()).owner.op)


# As an Op.


def test_static_shapes():
    inputs = the_inputs()
    y = solution(inputs)
    assert y.type.shape == (None, 2)
    assert y.type.dtype == "float64"
    gradients = pt.grad(y.sum(), list(inputs.values()))
    assert [g.type.shape for g in gradients] == [(), (2,), (None,), (), (2,)]
    fixed = solve_ivp(predators, 0.0, [1.0, 2.0], TIMES, {"growth": 1.0, "rates": [1.0, 2.0]})
    assert fixed.type.shape == (3, 2)
    assert solve_ivp(lambda t, y: -y, 0.0, [1], TIMES).type.shape == (3, 1)


@pytest.mark.parametrize("optimizer", ["fast_run", "fast_compile"])
def test_shapes_need_no_solve(optimizer):
    inputs, amounts = the_inputs(), vector("amounts")
    y = solution(inputs, doses=Doses([0.5, 1.0], amounts))
    outputs = [y, *with_derivatives(y, (T0, Y0, TS, LEAVES + 1, node_of(y).op.system.amounts))]
    mode = pytensor.compile.mode.Mode("vm", optimizer)
    f = compiled([*inputs.values(), amounts], [o.shape for o in outputs], mode=mode)
    shapes = []
    done = solves(lambda: shapes.extend(f(*POINT.values(), np.ones(2))))
    assert optimizer == "fast_compile" or done == 0
    shapes = [tuple(shape.tolist()) for shape in shapes]
    assert shapes == [(3, 2), (3, 2), (3, 2), (3, 2, 2), (3, 2), (3, 2, 2), (3, 2, 2)]


def test_inputs_are_converted():
    """Integers, lists and float32 are taken; what has the wrong shape is not."""
    p = {"growth": np.float32(0.5), "rates": [1, 2]}
    y = solve_ivp(predators, 0, [1, 2], [1, 2], p)
    exact = {"growth": 0.5, "rates": np.array([1.0, 2.0])}
    expected = solve_ivp(predators, 0.0, np.array([1.0, 2.0]), np.array([1.0, 2.0]), exact)
    assert_same_bits(y.eval(), expected.eval())
    op = y.owner.op
    inputs = list(y.owner.inputs)
    for position, wrong in ((T0, pt.dvector()), (Y0, pt.dscalar()), (TS, pt.dmatrix())):
        with pytest.raises((TypeError, ValueError)):
            op.make_node(*inputs[:position], wrong, *inputs[position + 1 :])
    with pytest.raises(ValueError, match="argument"):
        op.make_node(*inputs[:-1])


@pytest.mark.parametrize("method", ["auto", "scipy-LSODA"])
def test_debug_mode(method):
    """PyTensor's own watchdog: outputs aliased, inputs changed, other values after a rewrite."""
    inputs, amounts, values = the_inputs(), vector("amounts"), vector("values")
    params = {"growth": Steps([1.0], values), "rates": inputs["rates"]}
    y = solve_ivp(
        predators,
        inputs["t0"],
        inputs["y0"],
        inputs["ts"],
        params,
        method=method,
        doses=Doses([0.5, 0.75], amounts),
    )
    wrt = [inputs[name] for name in ("t0", "y0", "ts", "rates")] + [amounts, values]
    f = pytensor.function(
        wrt,
        [y, *pt.grad(y.sum(), wrt)],
        mode=DebugMode(check_c_code=False, check_preallocated_output=["initial", "ALL"]),
    )
    point = [POINT[name] for name in ("t0", "y0", "ts", "rates")]
    results = f(*point, np.ones(2), np.array([0.5, 1.5]))
    assert all(np.isfinite(result).all() for result in results)


@in_modes("FAST_COMPILE", "NUMBA")
def test_inputs_may_be_views(mode):
    """Strided and reversed arrays, and one array for several inputs."""
    data = vector("data")
    y = solve_ivp(
        lambda t, y, p: p * y,
        0.0,
        pt.specify_shape(data[1:7:3], 2),
        data[::-1][:3],
        pt.specify_shape(-data[2:4], 2),
        method="bdf",
    )
    values = np.array([9.0, 1.0, 0.2, 0.5, 2.0, 1.5, 1.0])
    result = pytensor.function([data], y)(values)
    expected = values[1:7:3] * np.exp(-values[2:4] * np.array([1.0, 1.5, 2.0])[:, None])
    np.testing.assert_allclose(result, expected, rtol=1e-4)


# What is not taken.


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("there is no method 'rk4'", {"method": "rk4"}),
        ("tolerances should be above 0", {"rtol": 0.0}),
        ("tolerances should be above 0", {"atol": [1e-6, -1e-6]}),
        ("atol should be a number, or one for each of the 2 states", {"atol": [1e-6] * 3}),
        ("first_step should be above 0", {"first_step": -1.0}),
        ("max_steps should be 1 or more", {"max_steps": 0}),
        ("max_steps should be 1 or more, and whole, not 10.7", {"max_steps": 10.7}),
        ("breaks should be a vector", {"breaks": [[1.0]]}),
        ("doses.states should be whole numbers", {"doses": Doses([1.0], 1.0, states=0.5)}),
    ],
)
def test_options_that_make_no_sense(message, change):
    with pytest.raises(InputError, match=f"predators.*{message}"):
        solution(the_inputs(), **change)


def test_arguments_that_make_no_sense():
    def right(t, y):
        return -y

    for message, arguments in {
        "t0 should be a scalar": ([0.0], [1.0], TIMES),
        "ts should be a vector": (0.0, [1.0], 1.0),
        "y0 should be a vector": (0.0, 1.0, TIMES),
        "y0 is empty": (0.0, [], TIMES),
        "number of states must be known": (0.0, pt.dvector("y0"), TIMES),
        r"ts\[0\] is str 'a'": (0.0, [1.0], ["a"]),
        "is complex": (1j, [1.0], TIMES),
    }.items():
        with pytest.raises(InputError, match=rf"solve_ivp\(right\): .*{message}"):
            solve_ivp(right, *arguments)
    with pytest.raises(InputError, match="rhs is no function"):
        solve_ivp(3, 0.0, [1.0], TIMES)
