"""Programs on MPI ranks that are killed, told to end or interrupted: what they leave on disk."""

import os
import random
import re
import signal
import time

import numpy as np
import pytest

import pymc_mpimap as mpimap
from tests.launchers import MPICH, OPENMPI, launched_by
from tests.programs import Started, run, send

pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(400)]

KILLS = 10
TUNE, DRAWS, CHAINS = 50, 300, 2  # as in keeps_draws.py, and what it is told


def started(path, draws=DRAWS, chains=CHAINS, sampler="pymc", **options):
    return Started("keeps_draws.py", str(path), str(draws), str(chains), sampler, **options)


def nth_draw(number):
    """Return what is printed once so many draws are made, those of the first chain first."""
    chain, draw = divmod(number - 1, TUNE + DRAWS)
    return f"DRAW {chain} {draw}\n"


def returned(output):
    found = re.search(r"^RETURNED .*$", output, re.MULTILINE)
    assert found, output
    return found[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return what the chains are, without MPI; of longer ones they are the beginning."""
    path = tmp_path_factory.mktemp("uninterrupted")
    done = run(0, "keeps_draws.py", str(path), str(DRAWS), str(CHAINS), "pymc")
    assert done.returncode == 0, done.stderr
    return returned(done.stdout), mpimap.read_draws(path, warmup=True)


def assert_kept(path, output, expected):
    """Check that all draws that were reported are on disk, and those of the uninterrupted run."""
    kept = mpimap.read_draws(path, warmup=True)
    for chain, draw in re.findall(r"^DRAW (\d+) (\d+)$", output, re.MULTILINE):
        assert int(draw) < len(kept[int(chain)]["mu"])
    for chain, draws in kept.items():
        for name, values in draws.items():
            common = min(len(values), len(expected[chain][name]))
            np.testing.assert_array_equal(values[:common], expected[chain][name][:common])
    return sum(len(draws["mu"]) for draws in kept.values())


def test_killed_at_random_moments(uninterrupted, tmp_path):
    result, expected = uninterrupted
    moments = random.Random(5)
    path = tmp_path / "kept"
    kept = 0
    for _ in range(KILLS):
        program = started(path, ranks=2)
        everything = program.processes()
        # Stored draws are reported too, and at once: count on from those.
        program.said(nth_draw(kept + moments.randint(1, 60)))
        time.sleep(moments.uniform(0, 0.004))  # nothing is waited for: any moment of a draw
        send(signal.SIGKILL, everything)
        returncode, output = program.end()
        assert returncode != 0, output
        kept = assert_kept(path, output, expected)
    returncode, output = started(path, ranks=2).end(100)
    assert returncode == 0, output
    assert "goes on after" in output
    assert returned(output) == result
    assert_kept(path, output, expected)


@launched_by()
def test_ended_by_the_queueing_system(uninterrupted, launcher, tmp_path):
    """What was begun on ranks of one MPI library goes on anywhere, here without any."""
    path = tmp_path / "kept"
    program = started(path, ranks=3, launcher=launcher)
    program.said(nth_draw(60))
    os.killpg(program.process.pid, signal.SIGTERM)
    returncode, output = program.end(timeout=5)
    # Open MPI's mpiexec has a status of its own for what it ends.
    assert returncode == 143 if launcher is MPICH else returncode != 0, output
    assert assert_kept(path, output, uninterrupted[1]) >= 60
    if launcher is OPENMPI:  # After MPICH, the test above goes on.
        done = run(0, "keeps_draws.py", str(path), str(DRAWS), str(CHAINS), "pymc")
        assert returned(done.stdout) == uninterrupted[0]


def test_ctrl_c_returns_the_draws_so_far(uninterrupted, tmp_path):
    program = started(tmp_path / "kept", 100_000, ranks=2)
    program.said(nth_draw(60))
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 0, output
    assert returned(output).startswith("RETURNED 1 ")  # of the one chain that had begun
    assert_kept(tmp_path / "kept", output, uninterrupted[1])


def test_ctrl_c_returns_the_draws_so_far_of_nutpie():
    program = started("none", 1_000_000, sampler="nutpie", ranks=2)
    program.said("SAMPLING")
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 0, output
    assert re.match(r"RETURNED 2 [1-9]\d* 3 ", returned(output))


@pytest.mark.parametrize(
    ("launcher", "times"),
    # Open MPI's mpiexec ends its ranks at the first.
    [pytest.param(MPICH, 2, id="mpich"), pytest.param(OPENMPI, 1, id="openmpi")],
)
def test_ctrl_c_that_ends_all_at_once(uninterrupted, launcher, times, tmp_path):
    program = started(tmp_path / "kept", 100_000, ranks=2, launcher=launcher)
    program.said(nth_draw(60))
    os.killpg(program.process.pid, signal.SIGINT)
    if times == 2:
        program.said("Press Ctrl-C again")
        os.killpg(program.process.pid, signal.SIGINT)
    _, output = program.end(timeout=5)  # The status is mpiexec's own, and MPICH's may be 0.
    assert assert_kept(tmp_path / "kept", output, uninterrupted[1]) >= 60
