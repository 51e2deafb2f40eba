"""What `map_rect` says of arguments it cannot take: before anything is evaluated."""

import re

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_mpimap import (
    FiniteDifferences,
    InputError,
    MapRectError,
    SerialPool,
    local,
    map_rect,
    numeric_job,
)

N = 4


def f(*arguments):
    return pt.constant(1.0)


@numeric_job
def numeric(*arguments):
    return 1.0


THETA = pt.dscalar("theta")
OWN = pt.dvector("own", shape=(N,))
ROWS = np.zeros((N, 2))


class Opaque:
    def __repr__(self):
        return "<opaque>"


def one_argument(theta):
    return theta


def three_arguments(theta, job, x_r):
    return theta


def required_keyword(theta, job, *, option):
    return theta


def returns_matrix(theta, job):
    return pt.zeros((2, 2))


def returns_tuple(theta, job):
    return theta, theta


def returns_nothing(theta, job):
    pass


def draws(theta, job):
    return theta + pm.Normal.dist()


def transforms_a_draw(theta, job):
    return pm.draw(pm.Normal.dist()) if False else pt.exp(pm.Normal.dist(theta, 1))


def load_fails(job_id):
    raise OSError("no such file")


BAD = {
    # The number of jobs.
    "x_r too short": (lambda: map_rect(f, THETA, OWN, ROWS[:3]), ["x_r has 3 rows", "jobs has 4"]),
    "x_i too short": (
        lambda: map_rect(f, THETA, OWN, ROWS, ROWS[:1]),
        ["x_i has 1 rows", "jobs has 4"],
    ),
    "jobs against data": (
        lambda: map_rect(f, THETA, pt.dvector(), ROWS, ROWS[:3]),
        ["x_i has 3 rows", "x_r has 4 rows"],
    ),
    "entry of a dict": (
        lambda: map_rect(f, THETA, N, {"t": ROWS, "y": [ROWS[0]] * 3}),
        ["x_r['y'] has 3 rows", "jobs has 4"],
    ),
    "entry of jobs": (
        lambda: map_rect(f, THETA, {"a": OWN, "b": (ROWS, ROWS[:3])}),
        ["jobs['b'][1] has 3 rows", "jobs['a'] has 4 rows"],
    ),
    "number and data": (lambda: map_rect(f, THETA, 5, ROWS), ["x_r has 4 rows", "jobs has 5"]),
    "unknown": (
        lambda: map_rect(f, THETA, pt.dvector("own")),
        ["number of jobs is not known", "pt.specify_shape"],
    ),
    "nothing to count": (lambda: map_rect(f, THETA, None), ["number of jobs is not known"]),
    "negative": (lambda: map_rect(f, THETA, -1), ["jobs=-1", "negative"]),
    "true": (lambda: map_rect(f, THETA, True), ["jobs is the single value True"]),
    # Values.
    "scalar jobs": (
        lambda: map_rect(f, THETA, THETA),
        ["jobs is a scalar", "one row a job", "theta or in the closure"],
    ),
    "scalar data": (lambda: map_rect(f, THETA, OWN, 2.5), ["x_r is the single value 2.5"]),
    "string": (lambda: map_rect(f, THETA, OWN, "file.csv"), ["x_r", "'file.csv'"]),
    "strings": (
        lambda: map_rect(f, THETA, OWN, ["a", "b", "c", "d"]),
        ["x_r[0] is str 'a'", "numbers only", "@numeric_job"],
    ),
    "array of strings": (
        lambda: map_rect(f, THETA, OWN, np.array(list("abcd"))),
        ["x_r", "numbers"],
    ),
    "complex": (lambda: map_rect(f, THETA, OWN, np.ones(N) * 1j), ["x_r", "numbers"]),
    "list of dicts": (
        lambda: map_rect(f, THETA, OWN, None, [{"a": 1.0}] * N),
        ["x_i[0] is dict", "a dict of lists rather than a list of dicts"],
    ),
    "missing entry": (
        lambda: map_rect(f, THETA, OWN, [ROWS[0], ROWS[1], None, ROWS[2]]),
        ["x_r[2] is None (job 2)", "Leave missing values out"],
    ),
    "mixed dimensions": (
        lambda: map_rect(f, THETA, OWN, [ROWS[0], ROWS[1], ROWS, ROWS[2]]),
        ["x_r[2] has 2 dimensions", "x_r[0] has 1"],
    ),
    "mixed dimensions of variables": (
        lambda: map_rect(f, THETA, [pt.dvector(), pt.dscalar()]),
        ["jobs[1] has 0 dimensions", "jobs[0] has 1"],
    ),
    "theta": (lambda: map_rect(f, Opaque(), OWN), ["theta is Opaque <opaque>", "Give numbers"]),
    "entry of theta": (
        lambda: map_rect(f, {"a": (THETA, "b")}, OWN),
        ["theta['a'][1] is str 'b'", "Give numbers"],
    ),
    # Functions.
    "no function": (lambda: map_rect(3, THETA, OWN), ["f is no function", "int"]),
    "too few parameters": (
        lambda: map_rect(one_argument, THETA, OWN),
        ["one_argument", "f takes (theta)", "one_argument(theta, job)"],
    ),
    "too few parameters of a numeric job": (
        lambda: map_rect(numeric_job(one_argument), THETA, OWN, ROWS),
        ["f takes (theta)", "one_argument(theta, job, x_r)"],
    ),
    "too many parameters": (
        lambda: map_rect(three_arguments, THETA, OWN),
        ["f takes (theta, job, x_r)", "three_arguments(theta, job)", "x_r"],
    ),
    "a keyword nobody gives": (
        lambda: map_rect(required_keyword, THETA, OWN),
        ["f takes (theta, job, *, option)", "option"],
    ),
    "a matrix": (
        lambda: map_rect(returns_matrix, THETA, OWN),
        ["returns_matrix returned a tensor of 2 dimensions", ".sum()", ".ravel()"],
    ),
    "a tuple": (
        lambda: map_rect(returns_tuple, THETA, OWN),
        ["returns_tuple returned tuple", "@numeric_job"],
    ),
    "nothing": (
        lambda: map_rect(returns_nothing, THETA, OWN),
        ["returns_nothing returned NoneType"],
    ),
    "an object": (
        lambda: map_rect(lambda theta, job: Opaque(), THETA, OWN, name="objects"),
        ["objects returned Opaque"],
    ),
    "random": (
        lambda: map_rect(draws, THETA, OWN),
        ["draws draws the random variable", "inside the job"],
    ),
    "random with parameters": (
        lambda: map_rect(transforms_a_draw, THETA, OWN),
        ["transforms_a_draw draws the random variable", "inside the job"],
    ),
    # Options.
    "on_error": (
        lambda: map_rect(f, THETA, OWN, on_error="ignore"),
        ["on_error='ignore'", "'raise' or 'reject'"],
    ),
    "grain size": (lambda: map_rect(f, THETA, OWN, grain_size=0), ["grain_size=0", "positive"]),
    "fractional grain size": (lambda: map_rect(f, THETA, OWN, grain_size=1.5), ["grain_size=1.5"]),
    # Local data.
    "local in a dict": (
        lambda: map_rect(f, THETA, OWN, {"t": local(load_fails)}),
        ["x_r['t'] is local(...)", "pass local(load) as x_r itself"],
    ),
    "local that fails": (
        lambda: map_rect(f, THETA, OWN, local(load_fails)),
        ["x_r: load(0)", "OSError: no such file", "like="],
    ),
    "local of objects": (
        lambda: map_rect(f, THETA, OWN, local(lambda job_id: {"a": "text"})),
        ["x_r['a'], as load(job_id) returns it, is str 'text'"],
    ),
    "local without a function": (lambda: local(3), ["local(load)", "not 3"]),
    "local alone": (
        lambda: map_rect(f, THETA, pt.dvector(), local(lambda job_id: ROWS)),
        ["number of jobs is not known"],
    ),
    # Marks.
    "derivatives": (
        lambda: numeric_job(derivatives="autograd"),
        ["derivatives='autograd'", "'complex-step'"],
    ),
    "without": (lambda: numeric_job(without=["x_r"]), ["'x_r' is no parameter"]),
    "length": (lambda: numeric_job(length=-1), ["length=-1", "negative"]),
    "no callable": (lambda: numeric_job(3), ["numeric_job marks a function, not 3"]),
    "step": (lambda: FiniteDifferences(step=0), ["step=0", "between 0 and 1"]),
    "large step": (lambda: FiniteDifferences(step=1.0), ["step=1.0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_message(case):
    call, parts = BAD[case]
    with SerialPool() as pool:
        with pytest.raises(InputError) as caught:
            call()
        assert pool.report().evaluations == 0
    for part in parts:
        assert part in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MapRectError)


@pytest.mark.parametrize("function", [f, numeric], ids=["traced", "numeric"])
def test_message_names_the_map(function):
    """The user's name for it, or else the function's: a model may have many."""
    name = "f" if function is f else "numeric"
    with pytest.raises(InputError, match=re.escape(f"map_rect({name}): x_r has 3 rows")):
        map_rect(function, THETA, OWN, ROWS[:3])
    with pytest.raises(InputError, match=re.escape("map_rect(my model): x_r has 3 rows")):
        map_rect(function, THETA, OWN, ROWS[:3], name="my model")


def test_cause_is_kept():
    with pytest.raises(InputError) as caught:
        map_rect(f, THETA, OWN, local(load_fails))
    assert isinstance(caught.value.__cause__, OSError)


def test_an_exception_of_the_traced_function_is_the_users_own():
    def fails(theta, job):
        raise LookupError("my own mistake")

    with pytest.raises(LookupError, match="my own mistake"):
        map_rect(fails, THETA, OWN)


def test_random_variables_from_outside_are_no_mistake():
    with pm.Model():
        mu = pm.Normal("mu")
        z = pm.Normal("z", shape=N)
        output = map_rect(lambda theta, job: theta * job + mu, mu, z)
    assert output.type.shape == (N,)


@pytest.mark.parametrize("case", ["no jobs", "options by position"])
def test_type_errors(case):
    """Mistakes in the call itself are Python's to report."""
    given = (OWN, None, None, "name") if case == "options by position" else ()
    with pytest.raises(TypeError):
        map_rect(f, THETA, *given)
