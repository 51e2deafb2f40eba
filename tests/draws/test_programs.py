"""Programs on MPI ranks that are killed, told to end or interrupted: what they leave on disk."""

import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pymc_mpimap as mpimap

pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).parents[1] / "scripts" / "keeps_draws.py"
MPIEXEC = Path(sys.executable).parent / "mpiexec"
KILLS = 10
DRAWS = 300


class Program:
    """The script on ranks, in a process group and with a mark of its own."""

    def __init__(self, path, draws, chains=1, sampler="pymc", ranks=2):
        mark = f"TEST_DRAWS_MARK={os.getpid()} {time.monotonic_ns()}"
        self.mark = mark.encode()
        name, value = mark.split("=")
        launcher = [MPIEXEC, "-n", str(ranks)] if ranks else []
        # A shell that starts tests in the background has them, and what they start, ignore Ctrl-C.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [*launcher, sys.executable, SCRIPT, path, str(draws), str(chains), sampler],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, name: value},
            start_new_session=True,
        )
        signal.signal(signal.SIGINT, handler)
        self.lines = []
        self.reported = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.reported:
                self.lines.append(line)
                self.reported.notify_all()
        with self.reported:
            self.lines.append("")
            self.reported.notify_all()

    def wait_for(self, start, count=1):
        """Wait until so many lines that begin so were printed; say whether there are."""
        with self.reported:
            self.reported.wait_for(
                lambda: self.count(start) >= count or self.lines[-1:] == [""], timeout=120
            )
            return self.count(start) >= count

    def count(self, start):
        return sum(line.startswith(start) for line in self.lines)

    def drawn(self):
        """Return how many draws of each chain were reported as made in this run."""
        found = {}
        for line in self.lines:
            if made := re.match(r"DRAW (\d+) (\d+)\n", line):
                found[int(made[1])] = int(made[2]) + 1
        return found

    def processes(self):
        """Return the ids of all that were started, the launcher's own too."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark in (folder / "environ").read_bytes().split(b"\0")
                gone = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if marked and not gone:
                found.append(int(folder.name))
        return found

    def kill(self, processes):
        for pid in processes:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def end(self, timeout=100):
        """Wait for the end of all processes; return the exit status."""
        watched = [os.pidfd_open(pid) for pid in self.processes()]
        try:
            status = self.process.wait(timeout)
            for descriptor in watched:
                assert select.select([descriptor], [], [], 2)[0], "a process was left running"
        finally:
            for descriptor in watched:
                os.close(descriptor)
        self.reader.join(10)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill(self.processes())
        self.process.wait(10)
        self.reader.join(10)
        self.process.stdout.close()

    def output(self):
        return "".join(self.lines)


def returned(program):
    found = re.search(r"^RETURNED .*$", program.output(), re.MULTILINE)
    assert found, program.output()
    return found[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return what two chains are, without MPI; of a longer one they are the beginning."""
    path = tmp_path_factory.mktemp("uninterrupted")
    with Program(path, DRAWS, chains=2, ranks=0) as program:
        assert program.end() == 0, program.output()
        return returned(program), mpimap.read_draws(path, warmup=True)


def assert_kept(path, program, expected):
    """Check that all draws that were reported are on disk, and those of the uninterrupted run."""
    kept = mpimap.read_draws(path, warmup=True)
    for chain, count in program.drawn().items():
        assert len(kept[chain]["mu"]) >= count
    for chain, draws in kept.items():
        for name, values in draws.items():
            common = min(len(values), len(expected[chain][name]))
            np.testing.assert_array_equal(values[:common], expected[chain][name][:common])
    return kept


def test_killed_at_random_moments(uninterrupted, tmp_path):
    result, expected = uninterrupted
    moments = random.Random(5)
    path = tmp_path / "kept"
    kept = {}
    for _ in range(KILLS):
        with Program(path, DRAWS, chains=2) as program:
            assert program.wait_for("READY"), program.output()
            everything = program.processes()
            # Stored draws are reported too, and at once: count on from those.
            stored = sum(len(draws["mu"]) for draws in kept.values())
            assert program.wait_for("DRAW", stored + moments.randint(1, 60)), program.output()
            time.sleep(moments.uniform(0, 0.004))  # nothing is waited for: any moment of a draw
            program.kill(everything)
            assert program.end() != 0
            kept = assert_kept(path, program, expected)
    with Program(path, DRAWS, chains=2) as program:
        assert program.end() == 0, program.output()
        assert "goes on after" in program.output()
        assert returned(program) == result
        assert_kept(path, program, expected)


def test_ended_by_the_queueing_system(tmp_path):
    with Program(tmp_path / "kept", 100_000) as program:
        assert program.wait_for("DRAW", 60), program.output()
        program.signal(signal.SIGTERM)
        assert program.end(timeout=5) == 143, program.output()
        assert len(mpimap.read_draws(tmp_path / "kept", warmup=True)[0]["mu"]) >= 60


def test_ctrl_c_returns_the_draws_so_far(uninterrupted, tmp_path):
    with Program(tmp_path / "kept", 100_000, chains=2) as program:
        assert program.wait_for("DRAW", 60), program.output()
        program.signal(signal.SIGINT)
        assert program.end() == 0, program.output()
        assert returned(program).startswith("RETURNED 1 ")
        assert_kept(tmp_path / "kept", program, uninterrupted[1])


def test_ctrl_c_returns_the_draws_so_far_of_nutpie():
    with Program("none", 1_000_000, chains=2, sampler="nutpie") as program:
        assert program.wait_for("SAMPLING"), program.output()
        program.signal(signal.SIGINT)
        assert program.end() == 0, program.output()
        assert re.match(r"RETURNED 2 [1-9]\d* 3 ", returned(program))


def test_ctrl_c_twice_is_out(tmp_path):
    with Program(tmp_path / "kept", 100_000) as program:
        assert program.wait_for("DRAW", 60), program.output()
        program.signal(signal.SIGINT)
        # mpiexec passes the first on, and the second one ends all.
        assert program.wait_for("[mpiexec"), program.output()
        program.signal(signal.SIGINT)
        assert program.end(timeout=5) != 0, program.output()
        assert len(mpimap.read_draws(tmp_path / "kept", warmup=True)[0]["mu"]) >= 60
