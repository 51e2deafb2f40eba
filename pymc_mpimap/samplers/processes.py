"""PyMC's chains in processes of their own: an error of its own takes the place of theirs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pymc_mpimap.errors import MapRectError
from pymc_mpimap.pool.unseen import Watch
from pymc_mpimap.samplers.wrapping import wrap

__all__ = ["guard_population", "guard_sample", "guard_smc"]


def guard_sample(module: ModuleType) -> bool:
    """Let `pm.sample` raise what was raised in a chain's process."""
    return wrap(module.ProcessAdapter, dict.fromkeys(("recv_draw", "_send"), _with_cause))


def guard_smc(module: ModuleType) -> bool:
    """Let `pm.sample_smc` raise what was raised in a chain's process."""
    return wrap(module.SMCProcessAdapter, dict.fromkeys(("recv_message", "_send"), _with_cause))


def _with_cause(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        cause = error.__cause__
        if not isinstance(cause, MapRectError):
            raise
        cause.add_note(str(error).partition(" with: ")[0])  # which chain it was
        raise cause from cause.__cause__


def guard_population(module: ModuleType) -> bool:
    """Let samplers of a population of chains, such as DEMetropolis, raise what was raised in one.

    A chain's process logs it and ends; the others are told of a pipe that was closed.
    """
    return wrap(module.PopulationStepper, {"_run_secondary": _telling, "step": _told})


def _telling(run: Any, chain: int, stepper: bytes, pipe: Any) -> None:
    watch = Watch(here=True)
    run(chain, stepper, pipe)
    if isinstance(watch.error, MapRectError):
        watch.error.add_note(f"Chain {chain} failed")
        pipe.send(watch.error)


def _told(step: Any, stepper: Any, *args: Any, **kwargs: Any) -> Any:
    updates = step(stepper, *args, **kwargs)
    for update in updates:
        if isinstance(update, MapRectError):
            raise update
    return updates
