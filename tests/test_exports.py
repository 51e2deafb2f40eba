"""What users can import is what is meant for them."""

import importlib
import pkgutil
import types

import pytest

import pymc_mpimap

NAMES = [
    module.name
    for module in pkgutil.walk_packages(pymc_mpimap.__path__, "pymc_mpimap.")
    # Importing it runs it, or needs what need not be installed.
    if not module.name.endswith(("__main__", ".dispatch.jax"))
]

OBJECTS = set(pymc_mpimap.__all__) - {"__version__"}


def isort_style(name):
    """Ruff's order of names: constants, then classes, then the rest."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_all_is_sorted_and_without_repetition():
    assert pymc_mpimap.__all__ == sorted(set(pymc_mpimap.__all__), key=isort_style)


def test_nothing_else_leaks():
    public = {
        name
        for name, value in vars(pymc_mpimap).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == OBJECTS


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_exported_names_exist_and_come_from_the_package(name):
    value = getattr(pymc_mpimap, name)
    assert value.__module__.startswith("pymc_mpimap")


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_exports(name):
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        return  # A folder has nothing but its modules.
    assert list(module.__all__) == sorted(set(module.__all__), key=isort_style)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
