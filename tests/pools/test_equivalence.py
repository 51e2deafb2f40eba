"""Random models: with `map_rect` and without it, the value and all derivatives are the same."""

import numpy as np
import pytensor.tensor as pt
import pytest
from hypothesis import given, strategies as st
from pytensor.gradient import pushforward, verify_grad

from pymc_mpimap import map_rect
from tests.helpers import (
    assert_close,
    assert_equals_plain,
    evaluate,
    in_modes,
    without_map_rect,
)

# Pieces of a job's function. Each takes a vector and the arguments, and returns a vector of the
# same length (nothing that is undefined anywhere, so that any numbers will do).
PIECES = {
    "shift": lambda v, theta, job, x: v + job.sum(),
    "scale": lambda v, theta, job, x: v * pt.tanh(theta["a"]).sum(),
    "wave": lambda v, theta, job, x: pt.sin(v) + 0.5 * theta["b"],
    "softplus": lambda v, theta, job, x: pt.softplus(v - x.mean()),
    "matrix": lambda v, theta, job, x: v + (theta["m"] @ theta["m"].T).sum() / 10,
    "square": lambda v, theta, job, x: v**2 / (1 + v**2),
    "switch": lambda v, theta, job, x: pt.switch(v > 0.1, v * theta["b"], job.sum() - v),
    "running": lambda v, theta, job, x: pt.cumsum(v) / (1 + v.shape[0]),
    "ordered": lambda v, theta, job, x: v[::-1] + 0.1,
    "data": lambda v, theta, job, x: v + (x**2).sum() * theta["a"][0],
}
ENDS = {
    "sum": lambda v: v.sum(),
    "vector": lambda v: v,
    "head": lambda v: v[:1],
    "twice": lambda v: pt.concatenate([v, 2 * v]),
    "norm": lambda v: pt.sqrt(1 + (v**2).sum()),
}


@st.composite
def models(draw):
    """Return a job's function with arguments and the point to evaluate at."""
    n_jobs = draw(st.integers(1, 5))
    sizes = st.lists(st.integers(1, 3), min_size=n_jobs, max_size=n_jobs)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def arrays(ragged):
        if ragged:
            return [random.normal(size=k) for k in draw(sizes)]
        return random.normal(size=(n_jobs, draw(st.integers(1, 3))))

    pieces = [PIECES[k] for k in draw(st.lists(st.sampled_from(sorted(PIECES)), max_size=3))]
    start = draw(st.sampled_from(["job", "x"]))
    end = ENDS[draw(st.sampled_from(sorted(ENDS)))]

    def job_function(theta, job, x):
        v = (job if start == "job" else x) + 0.0
        for piece in pieces:
            v = piece(v, theta, job, x)
        return end(v)

    point = {}

    def variable(name, value, shape=None):
        v = pt.tensor(name, dtype=value.dtype, shape=shape or (None,) * value.ndim)
        point[v] = value
        return v

    theta = {
        "a": variable("a", random.normal(size=2)),
        "b": variable("b", np.asarray(random.normal())),
        "m": variable("m", random.normal(size=(2, 2))),
    }
    values = arrays(draw(st.booleans()))
    jobs = (
        [variable(f"job_{j}", v) for j, v in enumerate(values)]
        if isinstance(values, list)
        else variable("jobs", values, values.shape)
    )
    x = arrays(draw(st.booleans()))
    if isinstance(x, np.ndarray) and draw(st.booleans()):
        x = variable("x", x, (n_jobs, None))
    grain_size = draw(st.sampled_from([None, 1, 2, 4]))
    return job_function, (theta, jobs, x), grain_size, point


@given(models())
def test_value_gradient_and_second_derivative(model):
    f, arguments, grain_size, point = model
    output = map_rect(f, *arguments, grain_size=grain_size)
    assert_equals_plain(output, without_map_rect(f, *arguments), point, hessian=True)


@pytest.mark.slow
@given(models())
def test_pushforward(model):
    f, arguments, grain_size, point = model
    random = np.random.default_rng(0)
    tangents = [pt.constant(random.normal(size=v.shape)) for v in point.values()]
    output = map_rect(f, *arguments, grain_size=grain_size)
    both = [
        pushforward(vector, list(point), tangents, disconnected_outputs="ignore")
        for vector in (output, without_map_rect(f, *arguments))
    ]
    assert_close(*evaluate([v.sum() for v in both], point), rtol=1e-11)
    assert_close(*evaluate(both, point), rtol=1e-11)


@pytest.mark.slow
@given(models())
def test_forward_over_reverse(model):
    """The Hessian times a vector by a pushforward of the gradient."""
    f, arguments, grain_size, point = model
    wrt = list(point)[:2]
    tangents = [pt.ones_like(v) for v in wrt]
    both = []
    for output in (map_rect(f, *arguments, grain_size=grain_size), without_map_rect(f, *arguments)):
        gradients = pt.grad((output**2).sum(), wrt, disconnected_inputs="ignore")
        both.append(pushforward(gradients, wrt, tangents, disconnected_outputs="ignore"))
    results = evaluate([*both[0], *both[1]], point)
    assert_close(results[: len(wrt)], results[len(wrt) :], rtol=1e-11)


def simple(theta, job, x=None):
    total = pt.sin(theta.sum()) * (job**2).sum()
    return total if x is None else total * pt.cos(x)


SHAPES = {
    "vector of jobs": lambda: (np.random.default_rng(0).normal(size=4), None),
    "matrix of jobs": lambda: (np.random.default_rng(1).normal(size=(4, 2)), None),
    "3-d": lambda: (np.random.default_rng(2).normal(size=(4, 2, 2)), None),
    "vector output": lambda: (np.random.default_rng(3).normal(size=(4, 2)), np.ones((4, 3))),
    "ragged output": lambda: (
        np.random.default_rng(4).normal(size=(4, 2)),
        [np.ones(k) for k in (1, 0, 2, 3)],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_against_finite_differences(shape):
    jobs, x = SHAPES[shape]()
    theta = np.random.default_rng(5).normal(size=3)

    def total(theta, jobs):
        return map_rect(simple, theta, pt.specify_shape(jobs, (4, *[None] * (jobs.ndim - 1))), x)

    verify_grad(total, [theta, jobs], rng=np.random.default_rng(6))


@in_modes("NUMBA", "JAX")
def test_in_compiled_backends():
    theta, jobs = pt.dvector("theta"), pt.dmatrix("jobs", shape=(4, 2))
    x = np.arange(12.0).reshape(4, 3)
    random = np.random.default_rng(7)
    point = {theta: random.normal(size=3), jobs: random.normal(size=(4, 2))}
    output = map_rect(simple, theta, jobs, x)
    assert_equals_plain(output, without_map_rect(simple, theta, jobs, x), point)
