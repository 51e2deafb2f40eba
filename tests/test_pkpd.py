"""`examples/pkpd.py`: its job against SciPy, and a short run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from tests.helpers import load_example

EXAMPLE = Path(__file__).parents[1] / "examples" / "pkpd.py"
MPIEXEC = Path(sys.executable).with_name("mpiexec")
SECONDS = 400


@pytest.fixture(scope="module")
def pkpd():
    return load_example("pkpd")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_predictions_and_their_gradient_are_those_of_scipy(pkpd):
    x_r = {name: values[2] for name, values in pkpd.simulate(3).items()}
    assert len(x_r["dose_hours"]) > 1
    row = pt.dvector("log_parameters", shape=(3,))
    results = []
    for method in ("tsit5", "scipy-DOP853"):
        mean = pkpd.predictions(row, x_r, method)
        weighted = (mean * np.cos(np.arange(len(x_r["hours"])))).sum()
        outputs = [mean, pt.grad(weighted, row)]
        f = pytensor.function([row], outputs, mode="FAST_COMPILE")
        results.append(f(np.log(pkpd.TYPICAL) + 0.1))
    # Logarithms: where a concentration is a hundredth, the tolerance is a hundredfold of it.
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize(
    "ranks", [pytest.param(0, id="python"), pytest.param(2, id="mpiexec", marks=pytest.mark.mpi)]
)
def test_short_run(ranks, tmp_path):
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, EXAMPLE, "--subjects", "5", "--draws", "20"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    # How far the posterior is from the simulation says little after so few draws of so few
    # subjects; the typical values must be of the right order.
    found = dict(re.findall(r"typical\[(\w+)\] +([\d.]+)", done.stdout))
    simulated = {"clearance": 10.0, "transit": 125.0, "effect": 0.3}
    assert found.keys() == simulated.keys()
    for name, value in found.items():
        assert 0.4 < float(value) / simulated[name] < 2.5
    assert f"on {max(ranks, 1)} rank" in done.stdout
