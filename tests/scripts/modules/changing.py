"""Variables of all kinds, each read by a function in a way of its own."""

import functools
import os
import time
from types import SimpleNamespace

import inner.constants
import numpy as np
import pandas as pd

PID, START = os.getpid(), time.time()  # of each rank
CALLS = 0
CONFIGURED = FACTOR = 1.0
NAMESPACE = SimpleNamespace(factor=1.0)
TABLE = {"factor": lambda: 1.0}
SERIES = pd.Series([1.0])
OBJECTS = np.array([1.0, None], dtype=object)


class Class:
    factor = 1.0


def same(factor):
    return factor


PARTIAL = functools.partial(same, 1.0)


def traced(function):
    @functools.wraps(function)
    def wrapper():
        return function()

    return wrapper


def count():
    global CALLS  # noqa: PLW0603 # as users' modules do
    CALLS += 1


def configure(factor):
    global CONFIGURED  # noqa: PLW0603
    CONFIGURED = factor


def helper():
    return 1.0


def of_rank():
    count()
    return 1.0 + 0.0 * (PID + START + CALLS)


@traced
def configured():
    return CONFIGURED


@functools.lru_cache
def nested():
    return inner.constants.FACTOR


def attribute():
    return Class.factor


def namespace():
    return NAMESPACE.factor


def table():
    return TABLE["factor"]()


def series():
    return float(SERIES.iloc[0])


def objects():
    return OBJECTS[0]


def partial():
    return PARTIAL()


def replaced():
    return helper()


def with_default(factor=1.0):
    return factor


def default():
    return with_default()


def change():
    """Change all, as a program may do it after the ranks have met."""
    configure(2.0)
    inner.constants.FACTOR = Class.factor = NAMESPACE.factor = 2.0
    TABLE["factor"] = lambda: 2.0
    SERIES.iloc[0] = OBJECTS[0] = 2.0
    with_default.__defaults__ = (2.0,)


READERS = [
    configured, nested, attribute, namespace, table, series, objects, partial, replaced, default,
]  # fmt: skip
