"""Right-hand sides with their arguments in another order are refused, by their names."""

import functools
from collections.abc import Callable

import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_mpimap import solve_ivp
from pymc_mpimap.errors import InputError

K = pt.dscalar("k")


def solved(rhs, params=K):
    return solve_ivp(rhs, 0.0, [1.0], [0.5, 1.0], params, method="tsit5")


def decorated(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def odeint_order(y, t, k):
    return -k * y


class Model:
    def __call__(self, y, t, k):
        return -k * y

    def method(self, y, t, k):
        return -k * y

    @staticmethod
    def static(y, t, k):
        return -k * y


WRONG = {
    "function": odeint_order,
    "lambda": lambda y, t, k: -k * y,
    "x": lambda x, t, k: -k * x,
    "state, time": lambda state, time, k: -k * state,
    "u": lambda u, t, p: -p * u,
    "y, time": lambda y, time, k: -k * y,
    "capital": lambda Y, t, k: -k * Y,  # noqa: N803 # as users write it
    "capital time": lambda y, Time, k: -k * y,  # noqa: N803 # as users write it
    "underscore": lambda y, _t, k: -k * y,
    "names of its own": lambda concentration, t, k: -k * concentration,
    "odeint's x": lambda y, x, k: -k * y,
    "parameters second": lambda u, p, t: -p * u,
    "states last": lambda t, p, y: -p * y,
    "partial": functools.partial(odeint_order),
    "partial of more": functools.partial(lambda scale, y, t, k: -k * y * scale, 2.0),
    "partial by keyword": functools.partial(lambda y, t, k, scale: -k * y * scale, scale=2.0),
    "decorated": decorated(odeint_order),
    "object": Model(),
    "bound method": Model().method,
    "static method": Model.static,
    "default": lambda y, t, k=1.0: -k * y,
}


@pytest.mark.parametrize("rhs", WRONG.values(), ids=WRONG)
def test_another_order_is_refused(rhs):
    with pytest.raises(
        InputError, match=r"takes \(\w+, \w+, \w+.*\(t, y, params\): the time first"
    ):
        solved(rhs)


def test_the_refusal_tells_the_order_and_the_place():
    with pytest.raises(InputError) as caught:
        solved(odeint_order)
    message = str(caught.value)
    assert message.startswith(
        "odeint_order takes (y, t, k), the time after the states, as odeint and pm.ode have it, "
        "but is called as odeint_order(t, y, params): the time first"
    )
    assert f"{__file__}, line " in message
    assert "def odeint_order(y, t, k):" in message


def test_without_parameters_too():
    with pytest.raises(InputError, match=r"takes \(y, t\)"):
        solved(lambda y, t: -y, None)


class Right:
    def __call__(self, t, y, k):
        return -k * y

    def method(self, t, y, k):
        return -k * y


RIGHT = {
    "usual": lambda t, y, k: -k * y,
    "spelled out": lambda time, state, theta: -theta * state,
    "temperature": lambda _, T, k: -k * T,  # noqa: N803 # as users write it
    "temperature in time": lambda t, T, k: -k * T,  # noqa: N803 # as users write it
    "independent variable": lambda x, y, k: -k * y,
    "no names": lambda a, b, c: -c * b,
    "delay": lambda t, y, tau: -tau * y,
    "any": lambda *arguments: -arguments[2] * arguments[1],
    "object": Right(),
    "bound method": Right().method,
    "partial": functools.partial(lambda y0, t, y, k: -k * y, 3.0),
    "keywords behind": functools.partial(lambda t, y, k, *, time=0.0: -k * y + time),
}


@pytest.mark.parametrize("rhs", RIGHT.values(), ids=RIGHT)
def test_the_right_order_is_not(rhs):
    np.testing.assert_allclose(solved(rhs).eval({K: 0.5})[:, 0], np.exp([-0.25, -0.5]), rtol=1e-5)


def test_without_telling_names_an_error_says_the_order():
    with pytest.raises(InputError, match=r"called as rhs\(t, y, params\)"):
        solve_ivp(lambda a, b, c: [a[0], -c * a[1]], 0.0, [1.0, 2.0], [1.0], K)
