"""SUNDIALS itself: what is checked of it, and what is done where it is not there."""

import subprocess
import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from pymc_mpimap.ode import sundials
from pymc_mpimap.ode.methods import METHODS, SCIPY, in_force


@pytest.fixture
def unchecked():
    """Forget what is known of the library, before and after the test."""
    sundials.unavailable.cache_clear()
    yield
    sundials.unavailable.cache_clear()


def test_it_is_here():
    assert sundials.unavailable() is None
    assert [in_force(method) for method in METHODS] == list(METHODS)


@pytest.mark.parametrize("found", [None, ModuleSpec("sundials4py", None)])
def test_no_package(unchecked, monkeypatch, found):
    monkeypatch.setattr(sundials, "find_spec", lambda name: found)
    assert "pip install 'pymc_mpimap[ode]'" in sundials.unavailable()
    assert all(in_force(method) in SCIPY for method in METHODS)
    assert [in_force(method) for method in SCIPY] == list(SCIPY)


def test_a_package_that_cannot_be_loaded(unchecked, monkeypatch, tmp_path):
    library = tmp_path / "sundials4py.so"
    library.write_text("no library")
    spec = ModuleSpec("sundials4py", None, origin=str(library))
    monkeypatch.setattr(sundials, "find_spec", lambda name: spec)
    assert "cannot be loaded" in sundials.unavailable()


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (["CVode"], "does not export CVode; "),
        (["N_VWrmsNorm_Serial"], "does not export N_VWrmsNorm_Serial; "),
        (["CVode", "ARKodeFree"], "does not export CVode, ARKodeFree; "),
        (list(sundials._SIGNATURES), "and others; "),
    ],
)
def test_missing_symbols(unchecked, monkeypatch, missing, told):
    address = sundials.address
    monkeypatch.setattr(sundials, "address", lambda name: name not in missing and address(name))
    message = sundials.unavailable()
    assert told in message
    assert sundials.TESTED in message


@pytest.mark.parametrize(
    ("symbol", "told"),
    [
        ("N_VGetVectorID_Serial", "table of vector operations"),
        ("N_VScale_Serial", "table of vector operations"),
        ("SUNLinSolGetType_Dense", "linear solver"),
        ("SUNLinSolSolve_Dense", "linear solver"),
    ],
)
def test_structures_of_another_layout(unchecked, monkeypatch, symbol, told):
    """A function that is not where it is looked for."""
    address = sundials.address
    monkeypatch.setattr(sundials, "address", lambda name: address(name) + 8 * (name == symbol))
    assert f"lays out its {told} in another way" in sundials.unavailable()


def test_vectors_of_another_layout(unchecked, monkeypatch):
    monkeypatch.setattr(sundials, "_misplaced", lambda: "vectors")
    assert "lays out its vectors in another way" in sundials.unavailable()


def test_checked_once(unchecked, monkeypatch):
    assert sundials.unavailable() is None
    monkeypatch.setattr(sundials, "find_spec", lambda name: pytest.fail("looked again"))
    assert sundials.unavailable() is None


WITHOUT = """
import sys, warnings
import numpy as np, pytensor, pytensor.tensor as pt

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sundials4py":
            raise ModuleNotFoundError(name)

    def invalidate_caches(self):
        pass

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "sundials4py" else find_spec(name)
sys.meta_path.insert(0, Hidden())
import pymc_mpimap as mpimap

problems = {
    "auto": "scipy-LSODA", "dopri5": "scipy-RK45", "tsit5": "scipy-RK45", "bdf": "scipy-LSODA"
}
k = pt.dscalar("k")

def solved(method, mode="FAST_COMPILE", doses=None):
    y = mpimap.solve_ivp(
        lambda t, y, k: [-k * y[0], k * y[0] - y[1]], 0.0, [1.0, 0.5], [0.5, 2.0], k,
        method=method, rtol=1e-8, atol=1e-8, doses=doses,
    )
    return pytensor.function([k], [y, pt.grad(y.sum(), k)], mode=mode)(0.7)

for method, instead in problems.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = solved(method)
        again = solved(method)
    told = [w for w in caught if issubclass(w.category, mpimap.errors.MapRectWarning)]
    assert len(told) == 1, [str(w.message) for w in caught]
    assert repr(instead) in str(told[0].message) and "pymc_mpimap[ode]" in str(told[0].message)
    assert told[0].filename == "<string>" or "solve" not in told[0].filename, told[0].filename
    expected = solved(instead)
    assert all(np.array_equal(a, b) for a, b in zip(result, expected))
    if method == "auto":
        numba = solved(method, "NUMBA")
        assert all(np.array_equal(a, b) for a, b in zip(numba, expected))
    x, t = 0.7, np.array([0.5, 2.0])
    first, c = np.exp(-x * t), x / (1 - x)
    exact = np.stack([first, c * first + (0.5 - c) * np.exp(-t)], axis=1)
    assert np.max(np.abs(result[0] - exact)) < 1e-7
    h = 1e-6
    up, down = (
        (np.exp(-z * t) + z / (1 - z) * np.exp(-z * t) + (0.5 - z / (1 - z)) * np.exp(-t)).sum()
        for z in (x + h, x - h)
    )
    assert abs(result[1] - (up - down) / (2 * h)) < 1e-7
    assert np.isfinite(solved(method, doses=mpimap.Doses([1.0], 5.0))[0]).all()
assert "sundials4py" not in sys.modules
"""


@pytest.mark.slow
def test_without_it_scipy_solves():
    """With one warning a method, and to the same tolerance; numba's code calls it, too."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert answer.stderr == ""
    assert answer.returncode == 0


def test_loading_prints_nothing_and_solves(capfd):
    """A solve by the library, right after it was checked."""
    from pymc_mpimap import solve_ivp

    for method in METHODS:
        y = solve_ivp(lambda t, y: -y, 0.0, [1.0], [1.0], method=method, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(y.eval(), [[np.exp(-1.0)]], rtol=1e-7)
    assert capfd.readouterr() == ("", "")
