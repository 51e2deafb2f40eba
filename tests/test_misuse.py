"""Pools that are used in odd or wrong ways: each works, or says at once what is wrong."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pymc_mpimap
from pymc_mpimap import PoolError
from pymc_mpimap.pool.portrait import Portrait, check_agreement, new_seal

MPIEXEC = str(Path(sys.executable).parent / "mpiexec")
SCRIPTS = Path(__file__).parent / "scripts"


def run(*ranks, env=None):
    """Run a program for each rank: the arguments of python, and changes of the environment."""
    words = [MPIEXEC]
    for arguments, changes in ranks:
        options = [word for name, value in changes.items() for word in ("-env", name, value)]
        words += [*options, "-n", "1", sys.executable, *map(str, arguments), ":"]
    return subprocess.run(
        words[:-1], capture_output=True, text=True, timeout=100, check=False, env=env
    )


@pytest.mark.mpi
def test_odd_and_wrong_uses():
    result = run(*[([SCRIPTS / "misuse.py"], {})] * 3)
    assert result.returncode == 0, result.stderr
    answers = dict(line.split(" | ", 1) for line in result.stdout.splitlines())
    expected = {
        "twice": r"\(True, True, 1\)",
        "nested": r"\(True, \(0, 1\)\)",
        "in a serial pool": r"\(True, \[0, 0, 1\]\)",
        "entered while in use": r"\(\[\], False\)",
        "left while in use": r"\(\[0.0, 2.0, 4.0, 6.0, 8.0, 10.0\], 1\)",
        "after": r"\(\(True, True\), \[.map_rect is evaluated after .* 2 other ranks .* wait\. .*",
        "same again": "PoolError: this MPIPool was entered already; make another one",
        "directly after": "PoolError: this MPIPool was left; .*",
        "in a job of rank 0": r"JobError: job 0 of enters, on rank 0 .* entered inside a job, .*",
        "in a job of a worker": r"JobError: job 5 of enters, on rank 2 .* entered inside a job, .*",
        "overlapping": "PoolError: .* other ranks serve the MPIPool .*",
        "forked": r"\(.ParallelSamplingError: .* was forked from process .*cores=1.*., True\)",
        "forked and entered": r"\(.ParallelSamplingError: .* was forked from a rank .*., True\)",
        "forked and terminated": r"\(-15, True\)",
        "few jobs": r"\[\[\], \[0.0\], \[0.0, 2.0\]\]",
        "listening": r"\[0.0, 0.0, 0.0\]",
        "rejecting": r"\(\[-inf, 1.0, inf.*\], \[0.0, 1.0, inf, 3.0, 4.0, -inf\], .*\)",
    }
    assert answers.keys() == expected.keys()
    for name, said in expected.items():
        assert re.fullmatch(said, answers[name]), f"{name}: {answers[name]}"
    told = (
        "Of 3 evaluations of the pool, some gave no valid value:\n"
        "  rejected 3 times: jobs 5 (2 times) and 0 (once) of fails: ValueError: no\n"
        "  not finite 3 times: job 2 of fails: inf\n"
    )
    assert result.stderr.count(told) == 1, result.stderr


@pytest.fixture(scope="module")
def portrait():
    return Portrait.of_this_process()


def test_a_portrait_travels(portrait):
    assert portrait.place.cores
    assert portrait.versions["numba"] != "not installed"
    assert portrait.sources["tests.test_misuse"][0] == __file__
    assert "numpy" not in portrait.sources
    assert "json" not in portrait.sources
    assert Portrait.decode(portrait.encode()) == portrait


def changed(portrait, **fields):
    place = dataclasses.replace(portrait.place, host="far")
    return dataclasses.replace(portrait, **{"place": place, **fields})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda p: {"versions": {**p.versions, "llvmlite": "0.1"}},
            r"rank 2 on far has llvmlite 0\.1, but rank 0 on .* has [\d.]+; .* one environment",
        ),
        (
            lambda p: {"versions": {k: v for k, v in p.versions.items() if k != "CPython"}},
            "rank 2 on far has CPython not installed, but rank 0",
        ),
        (
            lambda p: {"versions": {**p.versions, "PyPy": "3.11"}},
            r"rank 2 on far has PyPy 3\.11, but rank 0 on .* has not installed",
        ),
        (lambda p: {"package": "0"}, "rank 2 on far and rank 0 on .* their source files differ"),
        (
            lambda p: {"script": ("/there/fit.py", "0")},
            "rank 2 on far runs /there/fit.py, but rank 0 on .* runs /here/fit.py",
        ),
        (
            lambda p: {"settings": {**p.settings, "optimizer_excluding": "fusion"}},
            "rank 2 on far has PyTensor's optimizer_excluding='fusion', but rank 0 on .* has ''",
        ),
        (
            lambda p: {"sources": {"models": ("/there/models.py", "0")}},
            (
                r"rank 2 on far has another version of the module models \(/there/models.py\) than "
                r"rank 0 \(/here/models.py\)"
            ),
        ),
    ],
    ids=["version", "missing", "additional", "package", "script", "settings", "module"],
)
def test_what_must_agree(portrait, change, said):
    mine = dataclasses.replace(
        portrait, script=("/here/fit.py", "1"), sources={"models": ("/here/models.py", "1")}
    )
    check_agreement({0: mine, 1: changed(mine), 2: changed(mine)})
    with pytest.raises(PoolError, match=said):
        check_agreement({0: mine, 1: changed(mine), 2: changed(mine, **change(mine))})


def test_what_need_not_agree(portrait):
    """Where the files are, what only one of them imported, and who runs no script at all."""
    mine = dataclasses.replace(
        portrait, script=("/here/fit.py", "1"), sources={"models": ("/here/models.py", "1")}
    )
    elsewhere = changed(
        mine, script=("/there/fit.py", "1"), sources={"models": ("/there/models.py", "1")}
    )
    other = changed(mine, script=None, sources={"others": ("/there/others.py", "0")})
    check_agreement({0: mine, 1: elsewhere, 2: other})


def test_no_two_crews_have_the_same_seal(portrait):
    seals = {new_seal(portrait) for _ in range(5)}
    assert len(seals) == 5
    assert all(-(2**63) <= seal < 2**63 for seal in seals)


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, pytensor, pytensor.tensor as pt, pymc_mpimap as mpimap
pytensor.config.mode = "FAST_COMPILE"
{early}
with mpimap.MPIPool():
    {late}
    theta = pt.scalar("theta")
    total = mpimap.map_rect(models.job, theta, np.arange(4.0))
    print("VALUES", total.eval({{theta: 1.5}}).tolist(), total.dtype, pytensor.config.floatX)
"""


@pytest.fixture
def folders(tmp_path):
    """Two folders with another version of a module each, and two programs that use it."""
    for name, factor in (("here", 2), ("there", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.py").write_text(
            "import numpy as np\nimport pymc_mpimap\n\n@pymc_mpimap.numeric_job(derivatives=None)\n"
            f"def job(theta, own):\n    return np.asarray(factor() * theta * own)\n\n"
            f"def factor():\n    return {factor}.0\n"  # travels by its name
        )
    (tmp_path / "early.py").write_text(PROGRAM.format(early="import models", late="pass"))
    (tmp_path / "late.py").write_text(PROGRAM.format(early="", late="import models"))
    return tmp_path


@pytest.mark.mpi
def test_other_code_on_another_rank(folders, tmp_path):
    """It is refused when the ranks meet, or when the module is first used on both."""
    here, there = folders / "here", folders / "there"
    result = run(([folders / "early.py", here], {}), ([folders / "early.py", there], {}))
    assert result.returncode != 0
    said = rf"PoolError: rank 1 on \S+ has another version of the module models \({there}/"
    assert re.search(said, result.stderr), result.stderr
    result = run(([folders / "late.py", here], {}), ([folders / "late.py", there], {}))
    assert result.returncode != 0
    assert re.search(rf"^pymc_mpimap\.errors\.{said}", result.stderr, re.MULTILINE), result.stderr
    result = run(([folders / "early.py", here], {}), ([folders / "late.py", here], {}))
    assert result.returncode != 0
    said = r"PoolError: rank 1 on \S+ runs \S+/late.py, but rank 0 on \S+ runs \S+/early.py, and"
    assert re.search(said, result.stderr), result.stderr


@pytest.mark.mpi
def test_other_files_of_the_package_on_another_rank(folders, tmp_path):
    copy = tmp_path / "copy" / "pymc_mpimap"
    shutil.copytree(
        Path(pymc_mpimap.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    with (copy / "blocks.py").open("a") as file:
        file.write("# edited\n")
    program = [folders / "early.py", folders / "here"]
    result = run((program, {}), (program, {"PYTHONPATH": str(copy.parent)}))
    assert result.returncode != 0
    said = r"PoolError: rank 1 on \S+ and rank 0 on \S+ both have pymc_mpimap \S+, but their source"
    assert re.search(said, result.stderr), result.stderr


@pytest.mark.mpi
def test_other_configuration_on_another_rank(folders):
    """Rank 0's is passed on; what cannot be changed any more must be the same from the start."""
    program = [folders / "early.py", folders / "here"]
    flags = os.environ.get("PYTENSOR_FLAGS", "")
    joined = ",".join(filter(None, [flags, "floatX=float32,cycle_detection=fast"]))
    result = run((program, {}), (program, {"PYTENSOR_FLAGS": joined}))
    assert result.returncode == 0, result.stderr
    assert "VALUES [0.0, 3.0, 6.0, 9.0] float64 float64" in result.stdout
    result = run((program, {"PYTENSOR_FLAGS": joined}), (program, {}))
    assert result.returncode == 0, result.stderr
    assert "VALUES [0.0, 3.0, 6.0, 9.0] float64 float32" in result.stdout
    joined = ",".join(filter(None, [flags, "optimizer_excluding=fusion"]))
    result = run((program, {}), (program, {"PYTENSOR_FLAGS": joined}))
    assert result.returncode != 0
    said = r"PoolError: rank 1 on \S+ has PyTensor's optimizer_excluding='fusion', but rank 0"
    assert re.search(said, result.stderr), result.stderr
