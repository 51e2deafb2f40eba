"""better_optimize, of `pm.find_MAP`: an exception is noted in a result that is returned."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pymc_mpimap.pool.unseen import Watch
from pymc_mpimap.samplers.wrapping import wrap

__all__ = ["guard"]


def guard(module: ModuleType) -> bool:
    """Let optimizers raise what a job raised."""
    return wrap(module, {"optimizer_early_stopping_wrapper": _raising})


def _raising(optimize: Any, *args: Any, **kwargs: Any) -> Any:
    watch = Watch(here=True)
    try:
        result = optimize(*args, **kwargs)
    finally:
        watch.close()
    if watch.error is not None:
        raise watch.error
    return result
