"""What tests compare with: another pool, and the same model written without `map_rect`."""

from __future__ import annotations

import importlib.util
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable

from pymc_mpimap import SerialPool, current_pool
from pymc_mpimap.job.lowering import default_job_mode, lower
from pymc_mpimap.pool import commons

# The reference is evaluated node by node, without a rewrite that could be wrong (or take time).
AS_WRITTEN = Mode(linker="py", optimizer=None)


def quiet_function(inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Compile a function as the graph of a job is compiled in PyTensor's default mode."""
    return lower(inputs, outputs, default_job_mode()).function()


class Node:
    """One rank of a host, a thread: what is needed of a communicator of them."""

    def __init__(self, barrier: threading.Barrier, values: list[Any], position: int):
        self.barrier, self.values, self.position = barrier, values, position

    @property
    def size(self) -> int:
        return len(self.values)

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.position] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def Allgather(self, mine: np.ndarray, everyone: np.ndarray) -> None:  # noqa: N802 # mpi4py's
        everyone[:] = np.concatenate(self.gathered(mine))

    def bcast(self, value: Any, root: int) -> Any:
        return self.gathered(value)[root]


def on_one_host(ranks: Sequence[int], call: Callable[[Node, int], Any]) -> dict[int, Any]:
    """Return what ``call(node, rank)`` gives on each of these ranks, called at the same time."""
    barrier = threading.Barrier(len(ranks), timeout=20)
    values: list[Any] = [None] * len(ranks)
    results: dict[int, Any] = {}

    def one(position: int, rank: int) -> None:
        results[rank] = call(Node(barrier, values, position), rank)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def lay_out_anew() -> None:
    """Let the pool in force lay all programs out anew: as what tests have patched now says."""
    controller = getattr(current_pool(), "_controller", None)
    for assignment in () if controller is None else controller._assignments.values():
        assignment.in_force = False


@contextmanager
def large_arrays(where: str) -> Iterator[None]:
    """Let large arrays lie in memory "in common", or be sent "apart", as to another host."""

    def refuse(*_: Any) -> Any:
        raise OSError("no memory in common")

    with pytest.MonkeyPatch.context() as patch:
        if where == "apart":
            patch.setattr(commons, "Common", refuse)
        lay_out_anew()
        yield
    lay_out_anew()


rejects = pytest.mark.filterwarnings(r"ignore:job \d+ of:pymc_mpimap.MapRectWarning")
"""Marks tests that reject proposals in whatever pool: where there is none, that is warned of."""


def in_modes(*names: str) -> pytest.MarkDecorator:
    """Run a test in these PyTensor modes."""
    return pytest.mark.parametrize("mode", names, indirect=True)


def serial() -> bool:
    """Whether jobs run in this process, so that what they do here can be counted."""
    return isinstance(current_pool(), SerialPool)


def ranks() -> int:
    """Return the number of ranks that do jobs."""
    return len(current_pool().report().busy)


def evaluations() -> int:
    """Return the round trips so far of the pool in force."""
    return current_pool().report().evaluations


class CountingPool(SerialPool):
    """Counts round trips."""

    calls = 0

    def evaluate(self, program: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        return super().evaluate(program, inputs)


CALLS: Counter[str] = Counter()
"""How often functions were called in this process, by a name of the test's own."""


def assert_same_bits(result: Any, expected: Any) -> None:
    """Compare arrays, or lists of arrays: same types, same shapes, same bits."""
    if isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_same_bits(one, other)
        return
    result, expected = np.asarray(result), np.asarray(expected)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert np.array_equal(result, expected, equal_nan=True), f"{result!r} != {expected!r}"


def assert_close(result: Any, expected: Any, rtol: float = 1e-12) -> None:
    """Compare arrays, or lists of arrays: same shapes, and values that differ by rounding."""
    if isinstance(expected, (list, tuple)) and isinstance(result, (list, tuple)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_close(one, other, rtol)
        return
    assert np.shape(result) == np.shape(expected)
    finite = np.abs(np.where(np.isfinite(expected), expected, 0))
    # Entries that cancel are as exact as the largest is.
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=rtol * np.max(finite, initial=0))


def evaluate(outputs: Any, point: Mapping[Variable, Any]) -> Any:
    """Evaluate on the pool in force, and see that a serial pool gives the same bits."""
    function = compiled(outputs, point)
    return function(*point.values())


def compiled(outputs: Any, inputs: Any) -> Callable[..., Any]:
    """Compile a function that evaluates on the pool in force and on a serial one, and compares."""
    function = pytensor.function(list(inputs), outputs, on_unused_input="ignore")

    def call(*values: Any) -> Any:
        result = function(*values)
        with SerialPool():
            assert_same_bits(result, function(*values))
        return result

    return call


def load_example(name: str) -> Any:
    """Import an example under its own name: one may import another."""
    folder = Path(__file__).parents[1] / "examples"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec.loader.exec_module(module)
    return module


def weighted(output: Any) -> Any:
    """Return a scalar whose derivative differs from one entry of the output to the next."""
    return (output * (1.0 + pt.arange(output.shape[0]))).sum()


def without_map_rect(
    f: Callable[..., Any], theta: Any, jobs: Any, x_r: Any = None, x_i: Any = None
) -> Any:
    """Return what ``map_rect(f, theta, jobs, x_r, x_i)`` says, in PyTensor alone."""
    arguments = [jobs, x_r, x_i]
    given = max(k for k in range(3) if k == 0 or arguments[k] is not None) + 1
    n_jobs = next(n for n in map(_length, arguments) if n is not None)
    by_number = "job_id" in inspect.signature(f).parameters
    parts = []
    for j in range(n_jobs):
        own = [_entry(argument, j) for argument in arguments[:given]]
        part = f(_tensors(theta), *own, **({"job_id": pt.constant(j)} if by_number else {}))
        parts.append(pt.atleast_1d(pt.as_tensor_variable(part)))
    return pt.concatenate(parts)


def _length(argument: Any) -> int | None:
    if argument is None:
        return None
    if isinstance(argument, int):
        return argument
    if isinstance(argument, (dict, tuple)):
        entries = argument.values() if isinstance(argument, dict) else argument
        return next((n for n in map(_length, entries) if n is not None), None)
    return argument.type.shape[0] if isinstance(argument, Variable) else len(argument)


def _entry(argument: Any, j: int) -> Any:
    if argument is None or isinstance(argument, int):
        return None
    if isinstance(argument, dict):
        return {key: _entry(value, j) for key, value in argument.items()}
    if isinstance(argument, tuple):
        return tuple(_entry(value, j) for value in argument)
    return pt.as_tensor_variable(argument[j])


def _tensors(nest: Any) -> Any:
    if isinstance(nest, dict):
        return {key: _tensors(value) for key, value in nest.items()}
    if isinstance(nest, tuple):
        return tuple(_tensors(value) for value in nest)
    return None if nest is None else pt.as_tensor_variable(nest)


def assert_equals_plain(
    output: Any, plain: Any, point: Mapping[Variable, Any], *, hessian: bool = False
) -> list[np.ndarray]:
    """Compare the value and the derivatives with respect to all of `point` that are real."""
    wrt = [variable for variable in point if variable.type.dtype.startswith("float")]
    both = [derivatives(vector, wrt, hessian=hessian) for vector in (output, plain)]
    result = evaluate(both[0], point)
    expected = pytensor.function(list(point), both[1], mode=AS_WRITTEN, on_unused_input="ignore")
    assert_close(result, expected(*point.values()))
    return result


def derivatives(output: Any, wrt: Sequence[Any], *, hessian: bool = False) -> list[Any]:
    """Return the output, the gradient of its weighted sum, and if asked for a second derivative.

    The second derivative is that of the gradient along a fixed direction: reverse over reverse.
    """
    if not wrt:
        return [output]
    gradients = pt.grad(weighted(output), wrt, disconnected_inputs="ignore")
    results = [output, *gradients]
    if hessian:
        along = pt.add(
            *((g * (1.0 + pt.arange(g.size)).reshape(g.shape)).sum() for g in gradients),
            pt.constant(0.0),
        )
        results += pt.grad(along, wrt, disconnected_inputs="ignore")
    return results
