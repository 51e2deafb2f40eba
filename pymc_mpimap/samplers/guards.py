"""Guards of samplers and optimizers, put in place as soon as these are imported."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, override

from pymc_mpimap.errors import MapRectWarning
from pymc_mpimap.samplers import jax, nutpie, optimizers, processes

__all__: list[str] = []

_GUARDS: dict[str, Callable[[ModuleType], bool]] = {
    "better_optimize.minimize": optimizers.guard,
    "better_optimize.root": optimizers.guard,
    "numpyro.infer.mcmc": jax.guard_numpyro,
    "nutpie.sample": nutpie.guard,
    "pymc.sampling.jax": jax.guard_pymc,
    "pymc.sampling.parallel": processes.guard_sample,
    "pymc.sampling.population": processes.guard_population,
    "pymc.smc.parallel": processes.guard_smc,
    "pytensor.link.jax.linker": jax.guard_linker,
}
"""The guard of each module; it returns whether it found what it looked for."""


def _guard(module: ModuleType) -> None:
    name = module.__name__
    if name in _GUARDS and not _GUARDS[name](module):
        warnings.warn(
            f"{name} is not as it was when this version of pymc_mpimap was made: under it, an "
            "error of a job may interrupt like Ctrl-C, become another error, or be overlooked. "
            "Take another version of one of them, or look whether sampling ended too early",
            MapRectWarning,
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Guards modules right after they were imported, which nobody does for their sake."""

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _GUARDS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _guard_after(spec.loader)
        return spec


def _guard_after(loader: Any) -> None:
    """Let a loader guard what it has executed; it stays the same object, which others ask."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _guard(module)

    loader.exec_module = exec_module


sys.meta_path.insert(0, _Finder())
for _name in _GUARDS:
    if _name in sys.modules:
        _guard(sys.modules[_name])
