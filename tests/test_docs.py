"""Run the Python blocks of README.md and of the pages in docs.

The words after ```python say how: nothing, run in the namespace of the page's blocks before it;
`raises=Name`, likewise, and it raises this exception; `mpi`, a script of its own, run by python
alone and by mpiexec; `alone`, by python alone; `no-run`, not run.
"""

import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytensor
import pytest

import pymc_mpimap

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
SECONDS = 400  # Compiling, for the first time, on a busy machine, is most of it.
BLOCK = re.compile(r"^```python *(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """Yield how each block is to be run, its code, and on which line it begins."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield found[1].strip(), found[2], text.count("\n", 0, found.start(2)) + 1


def exception(name):
    return next(
        getattr(module, name)
        for module in (pymc_mpimap, pytensor.gradient, builtins)
        if hasattr(module, name)
    )


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    "mode",
    ["FAST_COMPILE", pytest.param("NUMBA", marks=pytest.mark.slow)],
    indirect=True,
)
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__docs__"}
    for how, code, line in blocks(page):
        if how in ("mpi", "alone", "no-run"):
            continue
        # Empty lines in front: a traceback then tells the page's own line.
        program = compile("\n" * (line - 1) + code, str(page), "exec")
        if not how:
            exec(program, namespace)
        else:
            with pytest.raises(exception(how.removeprefix("raises="))):
                exec(program, namespace)


# One that is run by python alone starts ranks itself.
SCRIPTS = [
    pytest.param(code, ranks, id=f"{name_of(page)}:{line}-{by}", marks=marks)
    for page in PAGES
    for how, code, line in blocks(page)
    for ranks, by, kinds, marks in (
        (0, "python", ("mpi",), []),
        (2, "mpiexec", ("mpi",), [pytest.mark.mpi]),
        (0, "python", ("alone",), [pytest.mark.mpi]),
    )
    if how in kinds
]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize(("code", "ranks"), SCRIPTS)
def test_a_script_of_a_page_runs(code, ranks, tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(code, encoding="utf-8")
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks else []
    done = subprocess.run(
        [*launcher, sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_every_block_says_how_it_is_run():
    for page in PAGES:
        for how, _, line in blocks(page):
            assert how in ("", "mpi", "alone", "no-run") or how.startswith("raises="), (page, line)
