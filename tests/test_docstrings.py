"""Every example in a docstring runs, and every public object has one."""

import doctest
import importlib
import inspect
import re

import pytest

import pymc_mpimap
from tests.test_exports import NAMES, OBJECTS


def is_exception(value):
    return inspect.isclass(value) and issubclass(value, BaseException)


@pytest.mark.parametrize("name", ["pymc_mpimap", *NAMES])
def test_examples_run(name):
    results = doctest.testmod(importlib.import_module(name), verbose=False)
    assert results.failed == 0


def test_there_are_examples():
    """So that the test above cannot pass by finding none."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test
        for name in NAMES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) >= 8


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_public_objects_are_documented(name):
    value = getattr(pymc_mpimap, name)
    text = inspect.getdoc(value)
    assert value.__doc__, f"{name} has no docstring of its own"
    assert text.splitlines()[0].endswith(".")
    if is_exception(value):
        return  # Its line says when it is raised; there is nothing to call.
    assert re.search(r"^Examples\n-{8}$", text, re.MULTILINE), f"{name} has no Examples"
    parameters = [
        p
        for p in inspect.signature(value).parameters.values()
        if p.name not in ("self", "args", "kwargs") and not p.name.startswith("_")
    ]
    if parameters:
        section = re.search(
            r"^Parameters\n-{10}\n(.*?)(?=^\w+\n-{3,}$|\Z)", text, re.MULTILINE | re.DOTALL
        )
        assert section, f"{name} has no Parameters"
        listed = {
            n.strip(" *")
            for line in re.findall(r"^(\S.*?) :", section[1], re.MULTILINE)
            for n in line.split(",")
        }
        assert listed >= {p.name for p in parameters}
