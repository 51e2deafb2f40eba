"""Numeric jobs: every way of giving derivatives, and what is refused without."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import NullTypeGradError, pushforward

from pymc_mpimap import FiniteDifferences, map_rect, numeric_job
from tests.helpers import (
    CALLS,
    assert_close,
    assert_equals_plain,
    assert_same_bits,
    compiled,
    evaluate,
    in_modes,
    serial,
    without_map_rect,
)

N = 6
RANDOM = np.random.default_rng(4)
X = RANDOM.normal(size=(N, 3))
POINT = {"a": RANDOM.normal(size=2), "b": np.array(0.3)}, RANDOM.normal(size=(N, 3))


def variables():
    theta = {"a": pt.dvector("a", shape=(2,)), "b": pt.dscalar("b")}
    own = pt.dmatrix("own", shape=(N, 3))
    return theta, own, {theta["a"]: POINT[0]["a"], theta["b"]: POINT[0]["b"], own: POINT[1]}


def plain(theta, job, x):
    """For NumPy and for PyTensor, real and complex numbers."""
    exp = pt.exp if isinstance(theta["b"], pt.TensorVariable) else np.exp
    return (theta["a"] ** 2).sum() * exp(theta["b"] * job * x).sum()


def plain_vector(theta, job, x):
    exp = pt.exp if isinstance(theta["b"], pt.TensorVariable) else np.exp
    return (theta["a"] ** 2).sum() * exp(theta["b"] * job * x)


def derivatives(theta, job, x):
    e, s = np.exp(theta["b"] * job * x), (theta["a"] ** 2).sum()
    return {"a": 2 * theta["a"] * e.sum(), "b": s * (e * job * x).sum()}, s * e * theta["b"] * x


def vector_derivatives(theta, job, x):
    e, s = np.exp(theta["b"] * job * x), (theta["a"] ** 2).sum()
    d_theta = {"a": np.outer(e, 2 * theta["a"]), "b": s * e * job * x}
    return d_theta, np.diag(s * e * theta["b"] * x)


def returned(f, d, length=None):
    return numeric_job(length=length)(lambda *a: (f(*a), *d(*a)))


def separate(f, d, length=None):
    return numeric_job(derivatives=d, length=length)(f)


def complex_step(f, d, length=None):
    return numeric_job(derivatives="complex-step", length=length)(f)


KINDS = {"scalar": (plain, derivatives), "vector": (plain_vector, vector_derivatives, 3)}
WAYS = {"returned": returned, "a function": separate, "complex-step": complex_step}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_derivatives(way, kind):
    f, *how = KINDS[kind]
    theta, own, point = variables()
    output = map_rect(WAYS[way](f, *how), theta, own, X)
    assert output.type.shape == ((N,) if kind == "scalar" else (3 * N,))
    assert_equals_plain(output, without_map_rect(f, theta, own, X), point)


@in_modes("NUMBA")
def test_derivatives_in_numba():
    theta, own, point = variables()
    output = map_rect(returned(plain, derivatives), theta, own, X)
    assert_equals_plain(output, without_map_rect(plain, theta, own, X), point)


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_finite_differences(kind):
    f = plain if kind == "scalar" else plain_vector
    theta, own, point = variables()
    mark = numeric_job(
        derivatives=FiniteDifferences(step=6e-6), length=None if kind == "scalar" else 3
    )
    results = [
        pytensor.function(list(point), pt.grad(output.sum(), list(point)))(*point.values())
        for output in (
            map_rect(mark(f), theta, own, X),
            without_map_rect(f, theta, own, X),
        )
    ]
    # The error of central differences: step**2 times the third derivative, and eps / step.
    assert_close(*results, rtol=1e-9)
    with pytest.raises(AssertionError):
        assert_close(*results, rtol=1e-15)  # they are differences, and no exact derivatives


def test_step_of_finite_differences_is_relative():
    big = 1e8
    theta = pt.dscalar("theta")
    seen = []

    def f(theta, job):
        seen.append(float(theta))
        return theta**2

    mark = numeric_job(derivatives=FiniteDifferences(step=1e-6))
    output = map_rect(mark(f), theta, 1)
    gradient = evaluate(pt.grad(output.sum(), theta), {theta: big})
    assert_close(gradient, 2 * big, rtol=1e-9)
    if serial():
        assert set(seen) == {big, big + 100, big - 100}


@pytest.mark.parametrize("length", [0, 1, 3])
def test_length_as_number(length):
    @numeric_job(length=length)
    def f(theta, job):
        k = np.arange(1.0, length + 1)
        return k * theta * job, k * job, k * theta

    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    output = map_rect(f, theta, own)
    assert output.type.shape == (N * length,)
    expected = (theta * own[:, None] * np.arange(1.0, length + 1)).ravel()
    assert_equals_plain(output, expected, {theta: 0.3, own: POINT[1][:, 0]})


def test_length_as_function_of_the_data():
    times = [np.arange(float(k)) for k in (2, 0, 3, 1, 5, 0)]

    @numeric_job(length=lambda x_r, x_i: len(x_r["t"]) + x_i)
    def f(theta, job, x_r, x_i):
        t = np.concatenate([x_r["t"], np.ones(x_i)])
        return theta @ theta * job * t, np.outer(job * t, 2 * theta), theta @ theta * t

    theta, own = pt.dvector("theta"), pt.dvector("own", shape=(N,))
    extra = np.array([0, 1, 0, 2, 0, 0])
    output = map_rect(f, theta, own, {"t": times}, extra)
    expected = pt.concatenate(
        [
            (theta**2).sum() * own[j] * np.concatenate([t, np.ones(extra[j])])
            for j, t in enumerate(times)
        ]
    )
    assert_equals_plain(output, expected, {theta: POINT[0]["a"], own: POINT[1][:, 0]})


def test_pushforward():
    theta, own, point = variables()
    for f, *how in KINDS.values():
        tangents = [pt.constant(RANDOM.normal(size=np.shape(v))) for v in point.values()]
        both = [
            pushforward(output, list(point), tangents)
            for output in (
                map_rect(returned(f, *how), theta, own, X),
                without_map_rect(f, theta, own, X),
            )
        ]
        assert_close(*evaluate(both, point))


# Nothing is made up.


@pytest.mark.parametrize(
    ("without", "refused"),
    [
        (["theta"], ["a", "b"]),
        (["theta['a']"], ["a"]),
        (["job"], ["own"]),
        (["theta['b']", "job"], ["b", "own"]),
    ],
)
def test_without(without, refused):
    f = numeric_job(without=without)(
        lambda theta, job, x: (
            plain(theta, job, x),
            {k: v for k, v in derivatives(theta, job, x)[0].items() if k not in refused},
            None if "own" in refused else derivatives(theta, job, x)[1],
        )
    )
    theta, own, point = variables()
    output, expected = map_rect(f, theta, own, X), without_map_rect(plain, theta, own, X)
    for variable in point:
        if variable.name in refused:
            with pytest.raises(NullTypeGradError, match="gives no derivative with respect to") as e:
                pt.grad(output.sum(), variable)
            name = "job" if variable is own else f"theta['{variable.name}']"
            assert name in str(e.value)
            assert "without=" in str(e.value)
        else:
            gradients = [pt.grad(o.sum(), variable) for o in (output, expected)]
            assert_close(*evaluate(gradients, point))
    # The value is there whatever is missing.
    assert_close(*evaluate([output, expected], point))


def test_a_name_is_not_its_prefix():
    """``theta['a']`` is not meant by ``theta['ab']``, nor the other way round."""
    f = numeric_job(without=["theta['ab']"])(
        lambda theta, job: (theta["a"] * theta["ab"], {"a": theta["ab"]})
    )
    theta = {"a": pt.dscalar("a"), "ab": pt.dscalar("ab")}
    total = map_rect(f, theta, 2).sum()
    assert evaluate(pt.grad(total, theta["a"]), {theta["a"]: 2.0, theta["ab"]: 3.0}) == 6
    with pytest.raises(NullTypeGradError, match=r"theta\['ab'\]"):
        pt.grad(total, theta["ab"])


def test_no_derivatives_at_all():
    f = numeric_job(derivatives=None)(plain)
    theta, own, point = variables()
    output = map_rect(f, theta, own, X)
    assert_close(*evaluate([output, without_map_rect(plain, theta, own, X)], point))
    for variable in point:
        with pytest.raises(NullTypeGradError, match="gives no derivatives"):
            pt.grad(output.sum(), variable)


def test_data_have_no_derivative():
    theta, own, point = variables()
    x = pt.dmatrix("x", shape=(N, 3))
    output = map_rect(returned(plain, derivatives), theta, own, x)
    with pytest.raises(NullTypeGradError, match="no derivative with respect to its data x_r"):
        pt.grad(output.sum(), x)
    plain_output = without_map_rect(plain, theta, own, x)
    gradients = [pt.grad(o.sum(), own) for o in (output, plain_output)]
    assert_close(*evaluate(gradients, {**point, x: X}))


def test_second_derivatives_are_refused():
    theta, own, _ = variables()
    output = map_rect(returned(plain, derivatives), theta, own, X)
    gradient = pt.grad(output.sum(), own)
    with pytest.raises(NullTypeGradError, match="gives first derivatives"):
        pt.grad(gradient.sum(), theta["b"])


def test_derivative_that_is_refused_is_no_obstacle_to_others():
    """The gradient of another part of the model is not touched by it."""
    f = numeric_job(without=["job"])(lambda theta, job: (theta * job, job))
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    output = map_rect(f, theta, own)
    total = output.sum() + (own**2).sum()
    point = {theta: 0.5, own: np.arange(float(N))}
    assert evaluate(pt.grad(total, theta), point) == sum(range(N))
    constant = pt.grad(total, own, consider_constant=[output])
    assert_same_bits(evaluate(constant, point), 2 * np.arange(float(N)))


# One evaluation for the value and the gradient.


@pytest.mark.parametrize("way", ["returned", "a function", "complex-step"])
def test_value_and_gradient_are_one_evaluation(way):
    CALLS.clear()

    def counted(theta, job, x):
        CALLS["value"] += 1
        return plain(theta, job, x)

    def counted_derivatives(theta, job, x):
        CALLS["derivatives"] += 1
        return derivatives(theta, job, x)

    theta, own, point = variables()
    output = map_rect(WAYS[way](counted, counted_derivatives), theta, own, X)
    function = pytensor.function(list(point), [output, *pt.grad(output.sum(), list(point))])
    results = function(*point.values())
    expected = without_map_rect(plain, theta, own, X)
    assert_close(results[0], evaluate(expected, point))
    if serial():
        # A complex step is one more call a parameter: 2 + 1 + 3 of them.
        calls = {"returned": (1, 1), "a function": (1, 1), "complex-step": (1 + 6, 0)}[way]
        assert (CALLS["value"], CALLS["derivatives"]) == (N * calls[0], N * calls[1])


def test_value_alone_does_not_call_the_derivatives():
    CALLS.clear()

    def counted_derivatives(theta, job, x):
        CALLS["derivatives"] += 1
        return derivatives(theta, job, x)

    theta, own, point = variables()
    output = map_rect(separate(plain, counted_derivatives), theta, own, X)
    value = evaluate(output, point)
    assert_close(value, evaluate(without_map_rect(plain, theta, own, X), point))
    assert CALLS["derivatives"] == 0


# What is kept between the value and a pullback that waits for it.


def test_kept_evaluations_of_one_function_called_in_two_ways():
    """The same numbers under other names are other arguments."""

    @numeric_job
    def difference(theta, job):
        return theta["a"] - theta["b"], {"a": 1.0, "b": -1.0}, 0.0

    x, y, own = pt.dscalar("x"), pt.dscalar("y"), pt.dvector("own", shape=(2,))
    first = map_rect(difference, {"a": x, "b": y}, own)
    second = map_rect(difference, {"b": x, "a": y}, own + pt.isnan(first))
    both = [first, second, pt.grad((first**2).sum() + (second**3).sum(), x)]
    result = evaluate(both, {x: 5.0, y: 1.0, own: np.zeros(2)})
    assert_same_bits(result[:2], [np.full(2, 4.0), np.full(2, -4.0)])
    assert result[2] == 2 * 2 * 4.0 - 2 * 3 * 16.0


def test_kept_evaluations_are_told_apart_by_shape():
    @numeric_job
    def rows(theta, job):
        return float(len(theta)) * job, np.zeros(theta.shape), float(len(theta))

    theta, own = pt.dmatrix("theta"), pt.dvector("own", shape=(2,))
    output = map_rect(rows, theta, own)
    function = compiled([output, pt.grad((output**2).sum(), own)], [theta, own])
    for shape in ((2, 3), (3, 2)):
        result = function(np.ones(shape), np.ones(2))
        assert_same_bits(result, [np.full(2, float(shape[0])), np.full(2, 2.0 * shape[0] ** 2)])


@pytest.mark.parametrize("way", ["complex-step", FiniteDifferences(1e-6)])
def test_steps_are_taken_in_real_parameters_alone(way):
    """An integer stays one, and what has no derivative is left alone."""

    @numeric_job(derivatives=way, without=["theta['tol']"])
    def power(theta, job):
        assert isinstance(theta["tol"], (float, np.ndarray))
        assert not np.iscomplexobj(theta["tol"])
        result = 1.0
        for _ in range(int(theta["n"])):
            result = result * theta["x"]
        return result * job

    x, tol = pt.dscalar("x"), pt.dscalar("tol")
    output = map_rect(power, {"x": x, "n": 3, "tol": tol}, np.ones(2)).sum()
    gradient = evaluate(pt.grad(output, x), {x: 2.0, tol: 1e-3})
    np.testing.assert_allclose(gradient, 24.0, rtol=1e-8)
