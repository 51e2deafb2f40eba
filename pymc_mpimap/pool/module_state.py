"""The variables of the user's own modules that functions read, and what became of them.

Ranks that run the same script have the same modules until they meet. From then on only rank 0 runs
the script: what it changes there, the others do not know.
"""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pymc_mpimap.data import array_digest, object_digest
from pymc_mpimap.pool.portrait import loaded_sources, own_modules

__all__ = ["Snapshot", "fingerprint", "is_configured", "variables_of"]

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
_LEAVES = (*_PLAIN, np.ndarray, types.ModuleType)
_MOST_ITEMS = 10_000
_MOST_BYTES = 1 << 20

Variables = dict[tuple[str, str], Any]
"""Values by the names of a module and of a variable in it."""


class Snapshot:
    """The variables of the user's own modules as they were when the ranks met."""

    def __init__(self) -> None:
        modules = own_modules()
        self._modules = {module.__name__ for module in modules}
        self._held = {
            (module.__name__, name): (_same_as(value), fingerprint(value))
            for module in modules
            for name, value in list(vars(module).items())
            if not name.startswith("__") and not isinstance(value, types.ModuleType)
        }

    def changed(self, variable: tuple[str, str], value: Any) -> bool:
        """Return whether a variable holds another value than it did, or one that was changed."""
        if variable not in self._held:
            return True
        is_same, before = self._held[variable]
        if before is None:
            return not is_same(value)  # It is large, and what is in it is not looked at.
        return fingerprint(value) != before

    def knows(self, variable: tuple[str, str]) -> bool:
        """Return whether the module of a variable had been imported."""
        return variable[0] in self._modules


def _same_as(value: Any) -> Callable[[Any], bool]:
    """Return what tells a value from others that may have its place in memory later."""
    try:
        reference = weakref.ref(value)
    except TypeError:
        number = id(value)
        return lambda other: id(other) == number
    return lambda other: reference() is other


def is_configured(variable: tuple[str, str], value: Any) -> bool:
    """Return whether a value is all that decides, so that another one is another computation.

    A variable that functions of its module write to, or whose value can be changed in place, may
    be a count or a cache that says nothing of what is computed.
    """
    fixed = isinstance(value, types.FunctionType) or _is_immutable(value)
    return fixed and variable[1] not in _written(variable[0])


def _is_immutable(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_is_immutable(item) for item in value)
    return isinstance(value, _PLAIN)


def _written(module: str) -> set[str]:
    """Return the variables of a module that its functions write to."""
    found: set[str] = set()
    for loaded in own_modules():
        if loaded.__name__ == module:
            inside = list(vars(loaded).values())
            inside += [v for c in inside if isinstance(c, type) for v in vars(c).values()]
            for function in filter(None, map(_function, inside)):
                for code in _codes(function):
                    instructions = dis.get_instructions(code)
                    found |= {i.argval for i in instructions if i.opname == "STORE_GLOBAL"}
    return found


def _function(value: Any) -> types.FunctionType | None:
    """Return the function that a decorator, numba or `functools` has wrapped, if it is one."""
    for _ in range(20):
        if isinstance(value, types.FunctionType):
            inner = getattr(value, "__wrapped__", None)
            if inner is None:
                return value
        else:
            inner = getattr(value, "__func__", None) or getattr(value, "py_func", None)
            inner = inner or getattr(value, "__wrapped__", None)
        if inner is None or isinstance(value, type):
            return None
        value = inner
    return None


def _codes(function: types.FunctionType) -> Iterator[types.CodeType]:
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield code
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def variables_of(parts: Iterable[Any]) -> Variables:
    """Return the variables of the user's own modules that functions, or Ops', may read."""
    found: Variables = {}
    own = set(loaded_sources())
    todo: list[Any] = list(parts)
    seen: dict[int, Any] = {}  # by number, and the things too, so that no number is given twice
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen[id(value)] = value
        if isinstance(value, types.FunctionType):
            todo += _within(value)
            for module, name, held in _globals_of(value):
                if module in own:
                    found[module, name] = held
                todo.append(held)
        else:
            todo += _reachable(value, own)
    return found


def _reachable(value: Any, own: set[str]) -> list[Any]:
    """Return what is called, or read, where a thing is that is no function."""
    if isinstance(value, dict):
        return list(value.values()) if len(value) < _MOST_ITEMS else []
    if isinstance(value, list | tuple | set | frozenset):
        return list(value) if len(value) < _MOST_ITEMS else []
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    inside = list(filter(None, [_function(value)]))
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__ in own or kind.__module__ == "__main__":
        inside += [v for c in kind.__mro__ if c is not object for v in vars(c).values()]
        inside += vars(value).values() if hasattr(value, "__dict__") else ()
    return inside


def _within(function: types.FunctionType) -> list[Any]:
    """Return what a function has got beside the variables that it names."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:
            continue  # It is not filled in yet.
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*cells, *defaults, *filter(None, [getattr(function, "__wrapped__", None)])]


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """Return what a function may find in its module, and in modules that it finds there."""
    names: set[str] = set()
    for code in _codes(function):
        names |= set(code.co_names)
        names |= {c for c in code.co_consts if isinstance(c, str) and c.isidentifier()}
    # The variables of a script, and those of functions made there, travel with the function.
    here = function.__globals__
    module = str(here.get("__name__", ""))
    scopes: list[tuple[str, dict[str, Any]]] = [(module, here)]
    seen: set[str] = set()
    while scopes:
        scope, variables = scopes.pop()
        for name in sorted(names & variables.keys()):
            value = variables[name]
            if isinstance(value, types.ModuleType):
                if value.__name__ not in seen:
                    seen.add(value.__name__)
                    scopes.append((value.__name__, vars(value)))
            else:
                yield scope, name, value


def fingerprint(value: Any, *, whole: bool = False) -> bytes | None:
    """Return a fingerprint of a value; None if it is large, or there is none.

    Parameters
    ----------
    whole : bool
        Whether to make one of large and of foreign things, too.
    """
    try:
        return object_digest(_Description(whole).of(value))
    except (_TooMuch, RecursionError):
        return None


class _TooMuch(Exception):  # noqa: N818 # no error
    """There is more in a value than is looked at."""


class _Description:
    """A text that says what is in a value, the same in every process."""

    def __init__(self, whole: bool):
        self._whole = whole
        self._items = 0
        self._above: list[int] = []

    def of(self, value: Any) -> str:
        self._items += 1
        if self._items > _MOST_ITEMS and not self._whole:
            raise _TooMuch
        if isinstance(value, _PLAIN):
            return repr(value)
        if id(value) in self._above:
            return "itself"
        self._above.append(id(value))
        try:
            return self._inside(value)
        finally:
            self._above.pop()

    def _inside(self, value: Any) -> str:  # noqa: PLR0911 # a table of kinds
        kind = type(value).__name__
        if isinstance(value, np.ndarray):
            return kind + self._of_array(value)
        if isinstance(value, tuple | list | set | frozenset | dict):
            return f"{kind}({','.join(self._of_items(value))})"
        if (function := _function(value)) is not None:
            return self._of_function(function)
        if isinstance(value, functools.partial):
            return f"{kind}({self.of((value.func, value.args, value.keywords))})"
        if hasattr(value, "to_numpy") and not isinstance(value, type):
            return kind + self.of(np.asarray(value.to_numpy()))  # of pandas, polars
        own = value if isinstance(value, type) else type(value)
        if own.__module__ in set(loaded_sources()) or own is types.SimpleNamespace:
            inside = {k: v for k, v in vars(value).items() if not k.startswith("__")}
            return f"{own.__qualname__}({self.of(inside)})"
        return self._of_foreign(value)

    def _of_items(self, value: Any) -> list[str]:
        if isinstance(value, dict):
            return sorted(f"{self.of(k)}:{self.of(v)}" for k, v in value.items())
        items = list(map(self.of, value))
        return items if isinstance(value, tuple | list) else sorted(items)

    def _of_array(self, value: np.ndarray) -> str:
        if value.nbytes > _MOST_BYTES and not self._whole:
            raise _TooMuch
        if value.dtype.hasobject or value.dtype.kind == "T":
            return self.of(value.tolist())
        mask = getattr(value, "mask", None)
        return array_digest(np.asarray(value)).hex() + ("" if mask is None else self.of(mask))

    def _of_function(self, function: types.FunctionType) -> str:
        parts: list[Any] = [function.__qualname__]
        for code in _codes(function):
            constants = [c for c in code.co_consts if isinstance(c, _PLAIN)]
            parts += [code.co_code, code.co_names, *constants]
        return f"function({self.of([*parts, *_within(function)])})"

    def _of_foreign(self, value: Any) -> str:
        return object_digest(value).hex() if self._whole else type(value).__name__
