"""The benchmark that users run: that it runs and says what it promises; no time is asserted."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import PAGE, PLACE, TABLES
from pymc_mpimap.bench import workloads
from pymc_mpimap.bench.groups import BARE, GROUPS, PLAIN, POOL, SERIAL, least_maximum
from pymc_mpimap.bench.timing import Effort, alternate
from pymc_mpimap.pool.serial import SerialPool

# Beside the interpreter: another mpiexec on PATH may belong to another MPI library.
MPIEXEC = Path(sys.executable).with_name("mpiexec")
SECONDS = 400  # Compiling is most of it.


def bench(ranks, folder, *words):
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks else []
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), "mode=FAST_COMPILE"]))
    return subprocess.run(
        [*launcher, sys.executable, "-m", "pymc_mpimap.bench", "--quick", *words],
        cwd=folder,
        env={**os.environ, "PYTENSOR_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize(
    "ranks", [pytest.param(0, id="python"), pytest.param(2, id="mpiexec", marks=pytest.mark.mpi)]
)
def test_everything_is_measured(ranks, tmp_path):
    done = bench(ranks, tmp_path, "--json", "found.json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for name in GROUPS:
        assert re.search(rf"^{name}: ", done.stdout, re.MULTILINE), done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["benchmark"] == "bench"
    assert found["quick"] is True
    assert found["environment"]["ranks"] == max(1, ranks)
    assert {"mpi", "processor", "cores", "hosts", "python", "pytensor", "pymc_mpimap"} <= set(
        found["environment"]
    )
    groups = {group["name"]: group for group in found["groups"]}
    assert list(groups) == list(GROUPS)
    for name, group in groups.items():
        if name == "floor":
            assert bool(group["timings"]) == bool(ranks)
        for timing in group["timings"]:
            assert 0 < timing["minimum"] <= timing["median"]
            assert math.isfinite(timing["ratio"])
            assert len(timing["times"]) == 3
        assert group["meaning"] in done.stdout or not group["timings"]
        for fact in group["facts"]:
            assert set(fact) == {"name", "value", "at_minimum", "unit", "goal"}
    contestants = [timing["name"] for timing in groups["dispatch"]["timings"]]
    assert contestants == ([PLAIN, SERIAL, POOL, BARE] if ranks else [PLAIN, SERIAL])
    assert groups["w1"]["stan_microseconds"]


def test_an_unknown_name_is_refused(tmp_path):
    done = bench(0, tmp_path, "w7")
    assert done.returncode == 2
    assert "there is no w7; there are floor, dispatch" in done.stderr


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(lambda: workloads.nothing(3), id="nothing"),
        pytest.param(lambda: workloads.shards(400), id="shards"),
        pytest.param(lambda: workloads.cheap(7), id="cheap"),
        pytest.param(lambda: workloads.big_shared(2, 50), id="big-shared"),
        pytest.param(lambda: workloads.big_jobs(60, 20), id="big-jobs"),
    ],
)
def test_the_contestants_compute_the_same(workload):
    found = workload()
    for with_map, without in zip(
        found.function(*found.point), found.plain(*found.point), strict=True
    ):
        np.testing.assert_allclose(with_map, without, rtol=1e-10)


def test_contestants_take_turns():
    order = []

    def contestant(name):
        return lambda count: order.append(name) or 1e-3 * count

    timings = alternate({"a": contestant("a"), "b": contestant("b")}, Effort(4, 2.5e-3))
    assert order[-8:] == ["a", "b"] * 4
    assert [timing.name for timing in timings] == ["a", "b"]
    assert timings[0].times == pytest.approx([1e-3] * 4)


def test_a_spinning_job_takes_its_time():
    workload = workloads.spinning(np.array([1e-4, 2e-4]))
    with SerialPool():
        value, gradient = workload.function(*workload.point)
    assert value == pytest.approx(3e-4)
    assert gradient == pytest.approx(3e-4)


def test_the_least_maximum_is_that_of_all_splits():
    costs = np.random.default_rng(1).lognormal(0.0, 1.5, 9)
    splits = [(i, j) for i in range(1, 8) for j in range(i + 1, 9)]
    by_hand = min(max(part.sum() for part in np.split(costs, split)) for split in splits)
    assert least_maximum(costs, 3) == pytest.approx(by_hand)


def test_every_table_of_the_page_has_its_place():
    assert [place[2] for place in PLACE.finditer(PAGE.read_text())] == list(TABLES)
