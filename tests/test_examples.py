"""Run the examples as their docstrings say: by python alone, and by mpiexec.

`fit.py` and `fit_scipy.py` have their own tests in `test_theophylline.py`, `lynx_hare.py` and
`pkpd.py` in the files of their names.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# Beside the interpreter: another mpiexec on PATH may belong to another MPI library.
MPIEXEC = Path(sys.executable).with_name("mpiexec")
SECONDS = 400  # Compiling, for the first time, on a busy machine, is most of it.

launches = pytest.mark.parametrize(
    "ranks", [pytest.param(0, id="python"), pytest.param(3, id="mpiexec", marks=pytest.mark.mpi)]
)
NUMBER = r"-?\d+\.?\d*(?:e[+-]\d+)?"


def run(name, ranks, folder):
    """Run an example, on no ranks without mpiexec; return the lines it printed."""
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(SECONDS + 20)
@launches
def test_hello_prints_one_whole_line_a_rank_in_order(ranks, tmp_path):
    lines = run("hello", ranks, tmp_path)
    assert len(lines) == max(ranks, 1)
    for rank, line in enumerate(lines):
        assert re.fullmatch(
            rf"rank {rank} on \S+: f\(\[1\. {2 * rank}\.\]\) = {1.0 + 4 * rank**2}, "
            rf"gradient \[1\. {4 * rank}\.\]",
            line,
        )


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@launches
def test_logistic_prints_the_same_twice(ranks, tmp_path):
    plain, mapped, verdict = run("logistic", ranks, tmp_path)
    assert plain.startswith("plain ")
    assert mapped.startswith("mapped ")
    expected, found = ([float(x) for x in re.findall(NUMBER, line)] for line in (plain, mapped))
    assert len(found) == 5  # logp, and a gradient for the intercept and three slopes
    assert found == pytest.approx(expected, rel=1e-8)
    assert verdict == "equal to a relative 1e-12"


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@launches
def test_ragged_closure_finds_what_was_simulated(ranks, tmp_path):
    lines = run("ragged_closure", ranks, tmp_path)
    found = {words[0]: [float(words[1]), float(words[3])] for words in map(str.split, lines[:3])}
    simulated = {"slope": 2.0, "mean": 50.0, "sigma": 3.0}
    assert found.keys() == simulated.keys()
    for name, (mean, deviation) in found.items():
        assert abs(mean - simulated[name]) < 4 * deviation
    assert 0.05 < found["slope"][1] < 0.3
    assert f"on {max(ranks, 1)} rank" in lines[3]
    busy = [line for line in lines if "busy" in line]
    assert [line.split()[1] for line in busy] == [str(rank) for rank in range(max(ranks, 1))]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("school")]
