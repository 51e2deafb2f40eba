"""MapRectOp as a value and as an Op of PyTensor."""

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
from pytensor.gradient import DisconnectedInputError, DisconnectedType

from pymc_mpimap import MapRectOp, SerialPool, local, map_rect, numeric_job
from pymc_mpimap.data import SharedData
from tests.helpers import assert_equals_plain, assert_same_bits, in_modes, without_map_rect

N = 4


def squares(theta, job, x):
    return ((x - theta * job) ** 2).sum()


@numeric_job
def numeric_squares(theta, job, x):
    r = x - theta * job
    return (r**2).sum(), -2 * job * r.sum(), -2 * theta * r.sum()


def load(job_id):
    return np.arange(3.0) + job_id


def arguments():
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    return theta, own, np.arange(3.0 * N).reshape(N, 3)


def the_op(*given, **options):
    op = map_rect(*given, **options).owner.op
    assert isinstance(op, MapRectOp)
    return op


KINDS = {
    "traced": lambda: the_op(squares, *arguments()),
    "numeric": lambda: the_op(numeric_squares, *arguments()),
    "ragged": lambda: the_op(squares, *arguments()[:2], [np.arange(k + 1.0) for k in range(N)]),
    "ragged output": lambda: the_op(
        lambda theta, job, x: theta * x, *arguments()[:2], [np.ones(k) for k in range(N)]
    ),
    "local": lambda: the_op(squares, *arguments()[:2], local(load)),
    "objects": lambda: the_op(numeric_squares, *arguments()[:2], [{"a": k} for k in range(N)]),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_made_twice_is_equal(kind):
    one, other = KINDS[kind](), KINDS[kind]()
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert one != 0


@each_kind
@pytest.mark.parametrize("way", ["pickle", "cloudpickle", "copy", "deepcopy"])
def test_copies_are_equal(kind, way):
    op = KINDS[kind]()
    hash(op)  # What is remembered of it must not travel.
    again = {
        "pickle": lambda op: pickle.loads(cloudpickle.dumps(op)),
        "cloudpickle": lambda op: cloudpickle.loads(cloudpickle.dumps(op)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }[way](op)
    assert again == op
    assert hash(again) == hash(op)
    assert again.maps == op.maps


def test_plain_pickle():
    op = KINDS["numeric"]()
    assert pickle.loads(pickle.dumps(op)) == op


def test_what_makes_ops_differ():
    theta, own, x = arguments()
    op = the_op(squares, theta, own, x)
    different = {
        "function": the_op(lambda t, j, x: ((x + t * j) ** 2).sum(), theta, own, x),
        "data": the_op(squares, theta, own, x + 1e-300 + (x == 5)),
        "type of data": the_op(squares, theta, own, x.astype(np.float32)),
        "shape of data": the_op(squares, theta, own, x[:, :2]),
        "grain size": the_op(squares, theta, own, x, grain_size=2),
        "on_error": the_op(squares, theta, own, x, on_error="reject"),
        "name": the_op(squares, theta, own, x, name="another name"),  # messages tell it
        "kind": the_op(numeric_squares, theta, own, x),
        "number of jobs": the_op(squares, theta, own[:3], x[:3]),
    }
    for what, other in different.items():
        assert other != op, what
    assert len({op, *different.values()}) == 1 + len(different)
    assert the_op(squares, theta, own, x.copy()) == op
    assert the_op(squares, pt.dscalar(), pt.dvector(shape=(N,)), x) == op


def test_constants_of_the_closure_are_part_of_the_value():
    def ops(size):
        results = []
        for start in (0, 0, 1):
            array = np.arange(start, start + size, dtype=float)
            f = lambda theta, job: theta * job * pt.constant(array).sum()  # noqa: E731, B023
            results.append(the_op(f, *arguments()[:2]))
        return results

    for size in (3, 1000):
        one, same, other = ops(size)
        assert one == same
        assert one != other


@pytest.mark.parametrize(("size", "held"), [(512, 0), (513, 1)])
def test_large_constants_of_the_closure_are_held_apart_from_the_graph(size, held):
    array = np.arange(float(size))
    op = the_op(lambda theta, job: theta * job * pt.constant(array).sum(), *arguments()[:2])
    assert sum(isinstance(data, SharedData) for data in op.maps[0].data) == held


def test_derivatives_of_several_maps_at_once():
    """What the rewrites make can be differentiated again: terms of one input are added up."""
    theta, own, x = arguments()
    maps = [the_op(squares, theta, own, data).maps[0] for data in (x, x**2)]
    one, other = MapRectOp(maps, [(0, 1), (0, 1)])(theta, own)
    expected = [without_map_rect(squares, theta, own, data) for data in (x, x**2)]
    point = {theta: np.array(0.3), own: np.arange(float(N))}
    assert_equals_plain(pt.concatenate([one, other]), pt.concatenate(expected), point)


def test_the_pool_is_no_part_of_the_value():
    with SerialPool():
        inside = KINDS["traced"]()
    assert inside == KINDS["traced"]()


def test_equal_maps_are_evaluated_once():
    theta, own, x = arguments()
    total = map_rect(squares, theta, own, x).sum() * map_rect(squares, theta, own, x).sum()
    with SerialPool() as pool:
        function = pytensor.function([theta, own], total)
        maps = [n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, MapRectOp)]
        assert len(maps) == 1
        assert len(maps[0].outputs) == 1
        function(0.3, np.ones(N))
        assert pool.report().evaluations == 1


def test_a_pickled_function_evaluates_anywhere():
    """In another process, which has neither the pool nor the Op's module loaded."""
    theta, own, x = arguments()
    output = map_rect(squares, theta, own, x)
    outputs = [output, *pt.grad(output.sum(), [theta, own])]
    point = 0.3, np.arange(float(N))
    with SerialPool():
        expected = pytensor.function([theta, own], outputs)(*point)
    script = (
        "import sys, pickle, pytensor\n"
        "inputs, outputs, point = pickle.load(sys.stdin.buffer)\n"
        "with pytensor.config.change_flags(mode='FAST_COMPILE', cxx=''):\n"
        "    results = pytensor.function(inputs, outputs)(*point)\n"
        "sys.stdout.buffer.write(pickle.dumps(results))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        input=cloudpickle.dumps(([theta, own], outputs, point)),
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert_same_bits(pickle.loads(answer.stdout), expected)


# As an Op.


def test_static_shapes():
    theta, own, x = arguments()

    def lengths(f, *given):
        return map_rect(f, *given).type.shape

    assert lengths(squares, theta, own, x) == (N,)
    assert lengths(lambda t, j, x: x * t, theta, own, x) == (3 * N,)
    assert lengths(lambda t, j, x: (x * t)[:0], theta, own, x) == (0,)
    assert lengths(lambda t, j, x: x * t, theta, own, [np.ones(k) for k in range(N)]) == (None,)
    assert lengths(lambda t, j: t * j, theta, pt.dmatrix(shape=(N, 2))) == (2 * N,)
    assert lengths(lambda t, j: t * j, theta, pt.dmatrix(shape=(N, None))) == (None,)
    gradients = pt.grad(map_rect(squares, theta, own, x).sum(), [theta, own])
    assert [g.type.shape for g in gradients] == [(), (N,)]


@pytest.mark.parametrize("optimizer", ["fast_run", "fast_compile"])
def test_shapes_need_no_evaluation(optimizer):
    theta = pt.dvector("theta")
    own = pt.dmatrix("own", shape=(N, None))
    data = [np.ones(k) for k in (2, 0, 1, 3)]
    widths = pt.lvector("widths", shape=(N,))
    outputs = [
        map_rect(lambda t, j: t.sum() * j.sum(), theta, own),
        map_rect(lambda t, j: t, theta, own),
        map_rect(lambda t, j: j * t.sum(), theta, own),
        map_rect(lambda t, j, x: x * t.sum(), theta, own, data),
        map_rect(lambda t, j, w: pt.zeros(w) + t.sum(), theta, own, widths),
    ]
    outputs += pt.grad(outputs[2].sum(), [theta, own])
    with SerialPool() as pool:
        shapes = pytensor.function(
            [theta, own, widths],
            [output.shape for output in outputs],
            mode=pytensor.compile.mode.Mode("vm", optimizer),
            on_unused_input="ignore",
        )(np.ones(3), np.ones((N, 2)), np.array([1, 0, 2, 2]))
        assert optimizer == "fast_compile" or pool.report().evaluations == 0
    assert [tuple(s) for s in shapes] == [(N,), (3 * N,), (2 * N,), (6,), (5,), (3,), (N, 2)]


def test_connection_pattern():
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    integers, unused = pt.lvector("integers", shape=(N,)), pt.dscalar("unused")

    def job(theta, own, x):
        return theta["used"] * own * x

    theta = {"used": theta, "unused": unused}
    node = map_rect(job, theta, own, integers).owner
    pattern = dict(zip(node.inputs, node.op.connection_pattern(node), strict=True))
    names = {v.name: row for v, row in pattern.items()}
    assert names["theta"] == names["own"] == [True]
    assert names["integers"] == [False]
    assert "unused" not in names


def test_integer_inputs_are_disconnected():
    theta, integers = pt.dscalar("theta"), pt.lvector("integers", shape=(N,))
    output = map_rect(lambda t, j, x: t * x, theta, N, integers)
    with pytest.raises(DisconnectedInputError):
        pt.grad(output.sum(), integers)
    gradient = pt.grad(output.sum(), integers, disconnected_inputs="ignore")
    assert not gradient.eval({integers: np.arange(N)}, on_unused_input="ignore").any()


def test_integer_outputs_are_disconnected():
    theta = pt.dscalar("theta")
    output = map_rect(lambda t, j: pt.floor(t).astype("int64") + j, theta, np.arange(N))
    assert output.type.dtype == "int64"
    assert_same_bits(output.eval({theta: 2.5}), np.arange(N) + 2)
    pullback = output.owner.op.pullback(output.owner.inputs, [output], [DisconnectedType()()])
    assert all(isinstance(v.type, DisconnectedType) for v in pullback)


def test_node_takes_what_has_the_right_type_only():
    theta, own, x = arguments()
    op = the_op(squares, theta, own, x)
    point = np.array(1.5), np.arange(float(N))
    node = op.make_node(*point)
    assert_same_bits(node.outputs[0].eval(), without_map_rect(squares, *point, x).eval())
    for wrong in [(theta,), (theta, own, own), (own, own), (theta, theta), (theta, pt.dmatrix())]:
        with pytest.raises((TypeError, ValueError)):
            op.make_node(*wrong)
    other = pt.dvector(shape=(N + 1,))
    with pytest.raises((TypeError, ValueError, AssertionError)):
        op.make_node(theta, other).outputs[0].eval({theta: 1.0, other: np.ones(N + 1)})


def test_string_names_the_function_and_the_jobs():
    assert "squares" in str(KINDS["traced"]())
    assert f"{N} jobs" in str(KINDS["traced"]())


@each_kind
def test_debug_mode(kind):
    """PyTensor's own watchdog: outputs aliased, inputs changed, other values after a rewrite."""
    if kind == "objects":
        f, x = (
            numeric_job(lambda t, j, x: (t * j * x["a"], j * x["a"], t * x["a"])),
            [{"a": k} for k in range(N)],
        )
    else:
        f = numeric_squares if kind == "numeric" else squares
        x = local(load) if kind == "local" else arguments()[2]
    if kind.startswith("ragged"):
        x = [np.arange(k + 1.0) for k in range(N)]
    if kind == "ragged output":
        f = lambda theta, job, x: theta * job * x  # noqa: E731
    theta, own, _ = arguments()
    output = map_rect(f, theta, own, x)
    # The jobs' own functions are compiled in the mode of the test, not in DebugMode.
    function = pytensor.function(
        [theta, own],
        [output, *pt.grad(output.sum(), [theta, own])],
        mode=DebugMode(check_c_code=False, check_preallocated_output=["initial", "ALL"]),
    )
    with SerialPool():
        value, d_theta, d_own = function(0.3, np.arange(1.0, N + 1))
        assert np.isfinite([*value, d_theta, *d_own]).all()


@in_modes("CVM", "NUMBA")
def test_outputs_are_of_the_types_that_were_promised(mode):
    """Compiled code trusts types: dtype, number of dimensions and contiguity."""
    theta, own, x = arguments()
    output = map_rect(squares, theta, own, x)
    outputs = [output, *pt.grad(output.sum(), [theta, own])]
    with SerialPool() as pool:
        function = pytensor.function([theta, own], outputs)
        values = function(0.3, np.arange(1.0, N + 1))
        op = next(n.op for n in function.maker.fgraph.apply_nodes if isinstance(n.op, MapRectOp))
        node = next(n for n in function.maker.fgraph.apply_nodes if n.op is op)
        inputs = {"theta": np.array(0.3), "own": np.arange(1.0, N + 1)}
        given = [getattr(v, "data", inputs.get(v.name)) for v in node.inputs]
        raw = pool.evaluate(op.program, given)
    for array, variable in zip(raw, node.outputs, strict=True):
        assert isinstance(array, np.ndarray)
        assert array.dtype == variable.type.dtype
        assert array.ndim == variable.type.ndim
    assert [np.ndim(v) for v in values] == [1, 0, 1]
