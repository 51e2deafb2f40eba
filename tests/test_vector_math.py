"""Vectorizable functions: accuracy, special values, equal bits everywhere, and where they are."""

import inspect
import math
from decimal import Decimal, localcontext

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings, strategies as st
from pytensor.compile.mode import Mode, get_mode
from pytensor.scan.op import Scan
from pytensor.tensor.elemwise import Elemwise

from pymc_mpimap.vectormath import functions, ops
from pymc_mpimap.vectormath.dispatch import cache_key, processor_suits
from pymc_mpimap.vectormath.rewriting import vectorizing
from tests.helpers import quiet_function

pytestmark = pytest.mark.skipif(
    not processor_suits(), reason="this processor has no fused multiply-add"
)

TINY = Decimal("1e-20")
# The largest error allowed, in units in the last place. The largest found is in the documentation.
BOUNDS = {
    "exp": 1.0,
    "decay": 1.0,
    "log": 1.0,
    "log1p": 1.0,
    "expm1": 2.0,
    "tanh": 2.0,
    "softplus": 2.0,
    "sigmoid": 2.0,
}
TENSORS = {
    "exp": pt.exp,
    "log": pt.log,
    "log1p": pt.log1p,
    "expm1": pt.expm1,
    "tanh": pt.tanh,
    "softplus": pt.softplus,
    "sigmoid": pt.sigmoid,
}


def exact(name, x):
    """Return a function's value for a finite argument to 60 digits; None where it has none."""
    with localcontext() as context:
        context.prec = 60
        return _exact(name, Decimal(x))


def _exact(name, x):  # noqa: PLR0911 # one for each function
    near = min(max(x, Decimal(-800)), Decimal(800))  # beyond, a float64 is the same
    tiny = abs(x) < TINY
    match name:
        case "exp":
            return near.exp()
        case "decay":
            return (-abs(near)).exp()
        case "log":
            return x.ln() if x > 0 else None
        case "log1p":
            return x if tiny else (1 + x).ln() if x > -1 else None
        case "expm1":
            return x if tiny else near.exp() - 1
        case "tanh":
            return x if tiny else 1 - 2 / ((2 * near).exp() + 1)
        case "softplus":
            decayed = (-abs(near)).exp()
            return max(x, Decimal(0)) + (decayed if decayed < TINY else (1 + decayed).ln())
        case "sigmoid":
            return 1 / (1 + (-near).exp())


def ulps(value, true):
    """Return the distance of a float64 from the truth, in units of the truth's last place."""
    rounded = float(true)
    if math.isinf(rounded) or math.isinf(value):
        return 0.0 if value == rounded else math.inf
    with localcontext() as context:
        context.prec = 60
        return float(abs(Decimal(value) - true) / Decimal(math.ulp(rounded)))


@pytest.fixture(scope="module")
def compiled():
    """Return each function as a loop of Numba's over a vector."""

    def loop(name):
        function = getattr(functions, name)
        if name in ("softplus", "sigmoid"):

            @numba.njit
            def fill(x, result):
                for i in range(x.size):
                    result[i] = function(x[i], functions.decay(x[i]))
        else:

            @numba.njit
            def fill(x, result):
                for i in range(x.size):
                    result[i] = function(x[i])

        def evaluate(x):
            x = np.array(x, dtype="float64")
            result = np.empty_like(x)
            fill(x, result)
            return result

        return evaluate

    return {name: loop(name) for name in BOUNDS}


def spread(name, n, rng):
    """Return arguments from all over a function's range."""
    x = np.concatenate(
        [
            rng.integers(0, 2**63, n, dtype=np.uint64).view("float64"),
            rng.uniform(-1, 1, n),
            rng.uniform(-40, 40, n),
            rng.uniform(-745.2, 710, n),
            rng.standard_normal(n) * 10.0 ** rng.uniform(-16, 0, n),
            1 + rng.standard_normal(n) * 10.0 ** rng.uniform(-16, 0, n),
            -1 + 10.0 ** rng.uniform(-16, 0, n),
        ]
    )
    x = np.where(rng.random(x.size) < 0.5, x, -x)
    if name == "log":
        x = abs(x)
    if name == "log1p":
        x = np.where(x > -1, x, -x)
    return x[np.isfinite(x)]


@pytest.mark.parametrize("name", BOUNDS)
def test_errors_are_bounded(compiled, name):
    x = spread(name, 500, np.random.default_rng(1))
    true = [exact(name, float(argument)) for argument in x]
    errors = [
        ulps(float(value), reference)
        for value, reference in zip(compiled[name](x), true, strict=True)
        if reference is not None
    ]
    assert len(errors) > 2500
    assert max(errors) <= BOUNDS[name]


@pytest.mark.parametrize("name", BOUNDS)
@settings(max_examples=150)
@given(x=st.floats(allow_nan=False, allow_infinity=False))
def test_any_number(compiled, name, x):
    (value,) = compiled[name]([x])
    true = exact(name, x)
    if true is None:
        pole = {"log": 0.0, "log1p": -1.0}[name]
        assert value == -math.inf if x == pole else math.isnan(value)
    else:
        assert ulps(float(value), true) <= BOUNDS[name]
    if name in ("log1p", "expm1", "tanh") and x == 0:
        assert math.copysign(1, value) == math.copysign(1, x)


INF, NAN = math.inf, math.nan
SPECIAL = {
    "exp": {INF: INF, -INF: 0.0, 0.0: 1.0, 709.79: INF, -746.0: 0.0},
    "decay": {INF: 0.0, -INF: 0.0, 0.0: 1.0},
    "log": {INF: INF, -INF: NAN, -0.0: -INF, -1.0: NAN, 1.0: 0.0},
    "log1p": {INF: INF, -INF: NAN, -1.0: -INF, -1.5: NAN, -0.0: -0.0},
    "expm1": {INF: INF, -INF: -1.0, -40.0: -1.0, -0.0: -0.0, 710.0: INF},
    "tanh": {INF: 1.0, -INF: -1.0, 30.0: 1.0, -30.0: -1.0, -0.0: -0.0},
    "softplus": {INF: INF, -INF: 0.0, 1e300: 1e300, -800.0: 0.0},
    "sigmoid": {INF: 1.0, -INF: 0.0, 0.0: 0.5, -800.0: 0.0},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_special_values(compiled, name):
    special = {**SPECIAL[name], NAN: NAN}
    values = compiled[name](list(special))
    np.testing.assert_array_equal(values, list(special.values()))
    signs = [math.copysign(1, v) for v in special.values() if v == 0]
    assert [math.copysign(1, v) for v in values if v == 0] == signs


def all_functions(x):
    return [function(x) for function in TENSORS.values()]


@pytest.fixture(scope="module")
def everything():
    """Return all functions of a vector, as PyTensor compiles them for a job."""
    x = pt.dvector("x")
    with pytensor.config.change_flags(mode="NUMBA"):
        return quiet_function([x], all_functions(x))


def test_an_element_has_the_same_bits_in_any_vector(everything):
    """In the SIMD body, in the remainder, and alone."""
    x = np.concatenate([spread("log1p", 20, np.random.default_rng(2)), [NAN, INF, -INF, -0.0]])
    alone = [np.concatenate(parts) for parts in zip(*[everything(v) for v in x[:, None]])]  # noqa: B905 # of lists of one length
    for n in [*range(20), 63, 64, x.size]:
        for first in (0, 1, 5):
            for value, expected in zip(everything(x[first : first + n]), alone, strict=True):
                np.testing.assert_array_equal(value, expected[first : first + n])


def test_pytensors_values_are_met(everything):
    x = np.linspace(0.01, 5, 200)
    given_x = pt.dvector()
    expected = pytensor.function([given_x], all_functions(given_x), mode="FAST_COMPILE")(x)
    np.testing.assert_allclose(everything(x), expected, rtol=1e-15)


def scalar_ops(function):
    """Return the classes of all scalar Ops in a compiled function, with those within."""
    found = []

    def visit(graph):
        for node in graph.apply_nodes:
            for op in (node.op, getattr(node.op, "scalar_op", None)):
                if op is not None:
                    found.append(type(op))
                    if hasattr(op, "fgraph"):
                        visit(op.fgraph)

    visit(function.maker.fgraph)
    return found


def is_substituted(function):
    return any(issubclass(op, ops.VectorizableOp) for op in scalar_ops(function))


def test_functions_are_substituted_in_jobs_only(everything):
    assert is_substituted(everything)
    x = pt.dvector()
    assert not is_substituted(pytensor.function([x], all_functions(x), mode="NUMBA"))


@pytest.mark.parametrize("mode", ["FAST_COMPILE", "C", "CVM", "JAX"])
def test_other_linkers_modes_stay(mode):
    mode = get_mode(mode)
    assert vectorizing(mode) is mode
    x = pt.dvector()
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        assert not is_substituted(quiet_function([x], [pt.exp(x)]))


def test_a_mode_of_ones_own_rewriter_stays():
    mode = Mode("numba", optimizer=get_mode("NUMBA").optimizer)
    assert vectorizing(mode) is mode


def test_softplus_and_sigmoid_share_an_exponential():
    x = pt.dvector()
    with pytensor.config.change_flags(mode="NUMBA"):
        function = quiet_function([x], [pt.softplus(x), pt.sigmoid(x)])
    assert scalar_ops(function).count(ops.Decay) == 1
    assert len([n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, Elemwise)]) == 1


def test_integers_are_taken_and_float32_is_left():
    n, x = pt.lvector(), pt.fvector()
    with pytensor.config.change_flags(mode="NUMBA"):
        of_integers = quiet_function([n], [pt.log(n)])
        of_floats = quiet_function([x], [pt.exp(x)])
    assert is_substituted(of_integers)
    np.testing.assert_allclose(of_integers(np.array([1, 8]))[0], [0, math.log(8)], rtol=1e-15)
    assert not is_substituted(of_floats)
    assert of_floats(np.ones(1, "float32"))[0].dtype == "float32"


def test_log1mexp_is_made_of_them():
    x = pt.dvector()
    with pytensor.config.change_flags(mode="NUMBA"):
        function = quiet_function([x], [pt.log1mexp(x)])
    assert is_substituted(function)
    (values,) = function(np.array([-1e-10, -0.5, -1.0, -50.0, 0.0, 1.0]))
    expected = [
        math.log(-math.expm1(-1e-10)),
        math.log(-math.expm1(-0.5)),
        math.log1p(-math.exp(-1.0)),
    ]
    np.testing.assert_allclose(values[:3], expected, rtol=1e-15)
    assert values[3] == -math.exp(-50.0)
    assert values[4] == -INF
    assert math.isnan(values[5])


def test_a_loop_over_ragged_jobs_has_them_too():
    x, n = pt.dvector(), pt.lscalar()
    with pytensor.config.change_flags(mode="NUMBA"):
        traces = pytensor.scan(
            lambda k, x: pt.softplus(x[:k]).sum(),
            sequences=[pt.arange(n)],
            non_sequences=[x],
            return_updates=False,
        )
        function = quiet_function([x, n], [traces])
    (scan,) = [node.op for node in function.maker.fgraph.apply_nodes if isinstance(node.op, Scan)]
    found = [type(node.op) for node in scan.fgraph.apply_nodes]
    assert ops.LaneSum in found
    (values,) = function(np.zeros(5), 4)
    np.testing.assert_allclose(values, np.arange(4) * math.log(2))


def test_keys_change_with_the_code(monkeypatch):
    before = cache_key("function", "exp")
    assert before == cache_key("function", "exp") != cache_key("function", "log")
    source = inspect.getsource(functions)
    monkeypatch.setattr(
        inspect, "getsource", lambda module: source.replace("0.69", "0.68") + repr(module)
    )
    assert cache_key("function", "exp") != before


def test_ops_run_in_python_too():
    """As PyTensor runs any Op: to fold constants, and in its debug mode."""
    x = np.array([0.5, 2.0])
    for name, function in TENSORS.items():
        op = getattr(ops, name.capitalize())()
        arguments = [x] if op.nin == 1 else [x, np.exp(-x)]
        value = Elemwise(op)(*map(pt.as_tensor, arguments)).eval(mode="FAST_COMPILE")
        np.testing.assert_allclose(value, function(x).eval(mode="FAST_COMPILE"), rtol=1e-15)
    assert ops.LaneSum(0)(pt.as_tensor(x)).eval(mode="FAST_COMPILE") == 2.5
    rows = np.arange(6.0).reshape(3, 2)
    total = ops.StackSum(1)(pt.as_tensor(rows)).eval(mode="FAST_COMPILE")
    np.testing.assert_array_equal(total, [6.0, 9.0])
    columns = ops.Columns(3, (2, 0))(pt.as_tensor(x), pt.as_tensor(-x)).eval(mode="FAST_COMPILE")
    np.testing.assert_array_equal(columns, [[-0.5, 0.0, 0.5], [-2.0, 0.0, 2.0]])
    np.testing.assert_array_equal(ops.Stored()(pt.as_tensor(x)).eval(mode="FAST_COMPILE"), x)
    np.testing.assert_allclose(
        Elemwise(ops.Decay())(pt.as_tensor(-x)).eval(mode="FAST_COMPILE"), np.exp(-x)
    )


def test_composites_of_scalars():
    """PyTensor takes them out of their loops, and calls them in another way."""
    x = pt.dvector()
    outputs = [pt.exp(x[0]) * pt.log(x[1]) + pt.tanh(x[0] * x[1]), pt.exp(x[0]) - pt.log1p(x[1])]
    with pytensor.config.change_flags(mode="NUMBA"):
        function = quiet_function([x], outputs)
    assert is_substituted(function)
    expected = [np.exp(0.5) * np.log(2.0) + np.tanh(1.0), np.exp(0.5) - np.log1p(2.0)]
    np.testing.assert_allclose(function(np.array([0.5, 2.0])), expected, rtol=1e-15)
