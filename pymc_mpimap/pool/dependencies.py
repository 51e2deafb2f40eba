"""What a program depends on and does not contain: code that each process has found for itself.

A graph names its Ops; which function computes them is looked up in registries that every import
may add to. A job's function names the variables of its module; each process has its own. Rank 0
says what it has, and a rank that has something else refuses the program.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pytensor.graph.fg import AbstractFunctionGraph
from pytensor.graph.op import Op

from pymc_mpimap.data import array_digest, object_digest
from pymc_mpimap.errors import MapRectWarning, PoolError
from pymc_mpimap.job.base import Job
from pymc_mpimap.job.derivatives import NumericFunction
from pymc_mpimap.job.lowering import BlockGraph
from pymc_mpimap.map import Map
from pymc_mpimap.pool.portrait import loaded_sources

__all__ = ["Dependencies"]

_REGISTRIES = {
    "numba": (
        "pytensor.link.numba.dispatch.basic",
        ("numba_funcify", "numba_funcify_and_cache_key", "numba_funcify_default_op_cache_key"),
    ),
    "jax": ("pytensor.link.jax.dispatch.basic", ("jax_funcify",)),
}
"""For each backend, the functions that find what computes an Op, and the module they are in."""

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))


@dataclass(frozen=True)
class Dependencies:
    """What rank 0 has found for a program.

    Attributes
    ----------
    implementations : dict of (str, str) to (str, str, int)
        For each registry and type of Op: the module, name and line of what computes it.
    variables : dict of str to (bytes, bool)
        For each variable of a module of the user's own that a function in the program uses: a
        fingerprint, and whether the value could be changed in place.
    """

    implementations: dict[tuple[str, str], tuple[str, str, int]]
    variables: dict[str, tuple[bytes, bool]]

    @classmethod
    def of(cls, maps: Iterable[Map]) -> Self:
        """Return what this process has for these maps."""
        parts = list(_parts(maps))
        ops = {type(part) for part in parts if isinstance(part, Op)}
        backends = {part.backend for part in parts if isinstance(part, BlockGraph)}
        implementations = {
            (registry, _name_of(op)): _identity(dispatch(op))
            for registry, dispatch in _registries(backends)
            for op in ops
        }
        own = set(loaded_sources())
        variables = {
            f"{module}.{name}": (_fingerprint(value), not _is_immutable(value))
            for part in parts
            for module, name, value in _variables(part, own)
        }
        return cls(implementations, variables)

    def check(self, maps: Iterable[Map], modules: Iterable[str], here: str) -> None:
        """Refuse to compute with other code or values than rank 0.

        Parameters
        ----------
        maps : iterable of Map
            The same on this rank.
        modules : iterable of str
            The user's own modules on rank 0: imported here if an implementation is missing.
        here : str
            This rank and its host, for messages.

        Raises
        ------
        PoolError
            It names the Op or variable in question.
        """
        maps = list(maps)
        found = Dependencies.of(maps)
        if found.implementations != self.implementations:
            for module in [*(module for module, _, _ in self.implementations.values()), *modules]:
                _load(module)
            found = Dependencies.of(maps)
        for key, expected in self.implementations.items():
            if (actual := found.implementations.get(key)) != expected:
                raise PoolError(_of_implementation(key, expected, actual, here))
        for name, (digest, mutable) in self.variables.items():
            actual_digest, _ = found.variables.get(name, (None, mutable))
            if actual_digest == digest:
                continue
            message = (
                f"{here} has another value of {name} than rank 0, and a job uses it: it was "
                "changed on rank 0 alone, after the pool was entered. Change it before, or pass "
                "it to map_rect as data"
            )
            if not mutable:
                raise PoolError(message)
            warnings.warn(
                f"{message}. If jobs write to it and do not read what others wrote, all is well",
                MapRectWarning,
                stacklevel=2,
            )


def _of_implementation(
    key: tuple[str, str],
    expected: tuple[str, str, int],
    actual: tuple[str, str, int] | None,
    here: str,
) -> str:
    registry, op = key
    theirs = "nothing" if actual is None else f"{actual[0]}.{actual[1]}"
    return (
        f"{op} is computed by {expected[0]}.{expected[1]} on rank 0, but by {theirs} on {here}, "
        f"as {registry} says there; results would differ. Register the implementation before the "
        "pool is entered, or in a module that the other ranks can import"
    )


def _registries(backends: AbstractSet[str]) -> Iterator[tuple[str, Callable[[type], Any]]]:
    for backend in sorted(backends & _REGISTRIES.keys()):
        module, names = _REGISTRIES[backend]
        for name in names:
            yield name, getattr(importlib.import_module(module), name).dispatch


def _load(module: str) -> None:
    # What cannot be imported here is missing, and the check that follows says so.
    with contextlib.suppress(Exception):
        if module not in sys.modules:
            importlib.import_module(module)


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _identity(function: Any) -> tuple[str, str, int]:
    code = getattr(function, "__code__", None)
    line = 0 if code is None else code.co_firstlineno
    return function.__module__, getattr(function, "__qualname__", repr(function)), line


_WITH_PARTS = (
    AbstractFunctionGraph, BlockGraph, Job, Map, NumericFunction, Op, functools.partial,
    types.FunctionType, types.MethodType,
)  # fmt: skip


def _parts(maps: Iterable[Map]) -> Iterator[Any]:
    """Return all that the maps are made of: graphs, Ops, also those within Ops, and functions."""
    todo: list[Any] = list(maps)
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, AbstractFunctionGraph):
            todo += [node.op for node in part.toposort()]
        else:
            for value in vars(part).values() if hasattr(part, "__dict__") else ():
                inside = value if isinstance(value, tuple) else (value,)
                todo += [v for v in inside if isinstance(v, _WITH_PARTS)]


def _variables(part: Any, own: set[str]) -> Iterator[tuple[str, str, Any]]:
    """Return the variables of the user's own modules that a function, or an Op's, reads."""
    todo: list[Any] = [part]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, functools.partial):
            todo.append(value.func)
        elif isinstance(value, types.MethodType):
            todo.append(value.__func__)
        elif isinstance(value, types.FunctionType):
            for module, name, found in _globals_of(value):
                if isinstance(found, types.FunctionType | type | functools.partial):
                    todo.append(found)
                elif module in own and not isinstance(found, types.ModuleType):
                    yield module, name, found
        else:
            kind = value if isinstance(value, type) else type(value)
            if kind.__module__ in own:
                todo += [v for v in vars(kind).values() if isinstance(v, types.FunctionType)]


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """Return what a function finds in its module, and in modules that it finds there."""
    names: set[str] = set()
    written: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        written |= {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    here = function.__globals__
    by_value = function.__module__ == "__main__"
    for name in sorted(names & here.keys() - written):
        value = here[name]
        # The variables of a script travel with the functions that use them.
        if not by_value or isinstance(value, types.FunctionType | type):
            yield function.__module__, name, value
        if isinstance(value, types.ModuleType):
            for inner in sorted(names & vars(value).keys()):
                yield value.__name__, inner, vars(value)[inner]


def _is_immutable(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_is_immutable(item) for item in value)
    return isinstance(value, _PLAIN)


def _fingerprint(value: Any) -> bytes:
    """Return a fingerprint of plain values; of all others there is none, and they are equal."""
    return object_digest(_described(value))


def _described(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return array_digest(value).hex()
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({','.join(map(_described, value))})"
    if isinstance(value, dict):
        items = sorted(f"{_described(k)}:{_described(v)}" for k, v in value.items())
        return f"dict({','.join(items)})"
    if isinstance(value, set | frozenset):
        return f"set({','.join(sorted(map(_described, value)))})"
    return type(value).__name__
