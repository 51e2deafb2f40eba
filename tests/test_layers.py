"""The package's own rules of construction: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pymc_mpimap

PACKAGE = Path(pymc_mpimap.__file__).parent
LAYERS = [
    [
        "version",
        "errors",
        "refusal",
        "casts",
        "tables",
        "reals",
        "structure",
        "signature",
        "blocks",
        "tally",
        "native",
        "vectormath",
    ],
    ["data", "local_data", "job"],
    ["map", "pool"],
    ["op"],
    ["inner_graphs", "rewriting", "summing", "dispatch", "samplers"],
    ["arguments", "trace", "api", "ode", "draws"],
    ["bench", "__main__", "__init__"],
]
MAY_USE_MPI = {
    "pool.mpi",
    "pool.worker",
    "pool.communicator",
    "pool.mpi_library",
    "pool.spawned",
    "pool.mpi_errors",
    "bench.together",
}
PURE = {"blocks", "pool.balance", "pool.loss", "pool.protocol", "pool.schedule"}


def modules():
    """Return the package's modules by their names within it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def layer(name):
    """Return the layer of a module: that of its own name, or of the folder it is in."""
    top = name.split(".")[0]
    return next((k for k, names in enumerate(LAYERS) if top in names), None)


def imports(path, *, for_types=True):
    """Return the names that a file imports, in functions too; those for type checkers or not."""
    tree = ast.parse(path.read_text())
    skipped = set()
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {inner for part in node.body for inner in ast.walk(part)}
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(path, **options):
    """Return the modules of the package that a file imports."""
    found = set()
    for name in imports(path, **options):
        parts = name.split(".")
        if parts[0] != "pymc_mpimap":
            continue
        inner = ".".join(parts[1:])
        while inner and inner not in MODULES:
            inner = inner.rpartition(".")[0]
        found.add(inner or "__init__")
    return found


def test_every_module_has_a_layer():
    assert [name for name in MODULES if layer(name) is None] == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downhill(name):
    assert [other for other in internal(MODULES[name]) if layer(other) > layer(name)] == []


def test_no_layer_has_a_cycle():
    """Neither at import time nor by imports within functions."""
    graph = {name: internal(path, for_types=False) - {name} for name, path in MODULES.items()}
    finished = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in finished:
            for other in sorted(graph[name]):
                visit(other, [*trail, name])
            finished.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("name", sorted(set(MODULES) - MAY_USE_MPI))
def test_no_other_module_imports_mpi(name):
    loaded = imports(MODULES[name], for_types=False)
    assert not {i for i in loaded if i.split(".")[0] == "mpi4py"}


@pytest.mark.parametrize("name", sorted(PURE & set(MODULES)))
def test_pure_modules_know_neither_mpi_nor_pytensor(name):
    """Nor do the modules of the package that they import."""
    reached, todo = set(), {name}
    while todo:
        module = todo.pop()
        reached.add(module)
        todo |= internal(MODULES[module], for_types=False) - reached
    outside = {i.split(".")[0] for module in reached for i in imports(MODULES[module])}
    assert not outside & {"mpi4py", "pytensor", "pymc"}


@pytest.mark.parametrize("name", MODULES)
def test_files_are_short(name):
    assert len(MODULES[name].read_text().splitlines()) < 400


def in_a_fresh_process(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_importing_the_package_needs_no_mpi_and_no_backend():
    in_a_fresh_process(
        "import sys, pymc_mpimap\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "unwanted = {'mpi4py', 'jax', 'nutpie', 'pymc', 'pandas', 'polars', 'xarray'}\n"
        "assert not loaded & unwanted, sorted(loaded)\n"
    )


def test_serial_evaluation_needs_no_mpi():
    in_a_fresh_process(
        "import sys\n"
        "sys.modules['mpi4py'] = None\n"  # an import would raise
        "import numpy as np, pytensor, pytensor.tensor as pt, pymc_mpimap\n"
        "pytensor.config.mode, pytensor.config.cxx = 'FAST_COMPILE', ''\n"
        "theta = pt.dscalar()\n"
        "f = lambda theta, job: theta * job\n"
        "total = pymc_mpimap.map_rect(f, theta, np.arange(3.0)).sum()\n"
        "assert pt.grad(total, theta).eval({theta: 1.0}) == 3\n"
    )
