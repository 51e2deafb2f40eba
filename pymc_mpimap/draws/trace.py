"""DiskTrace: PyMC's trace in memory, with a log of it on disk."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, override

import numpy as np
import pymc
from pymc.backends import _ZarrChainBase
from pymc.backends.ndarray import NDArray
from pymc.model import modelcontext

from pymc_mpimap.draws.files import chains_in, check_names
from pymc_mpimap.draws.header import Header
from pymc_mpimap.draws.log import ChainLog, chains_by_run
from pymc_mpimap.draws.model import (
    LogDensity,
    difference,
    has_logp,
    newest_with_logp,
    own_logp,
)
from pymc_mpimap.draws.step import changed_settings, restore, same_seed, settings, snapshot
from pymc_mpimap.draws.writer import ChainWriter
from pymc_mpimap.errors import InputError

__all__ = ["DiskTrace"]

# PyMC's own, which prints what sampling does and is silent if asked to be.
_logger = logging.getLogger("pymc")

_VISIBLE = 1e-6
"""A difference of log-densities below which no ratio of densities changes visibly."""


@dataclass
class _Run:
    """The state that the copies of a trace share, one for each chain.

    Attributes
    ----------
    is_interrupted : bool
        Ctrl-C in one chain ends the next ones too.
    logs : list of ChainLog
        Of the chains, in their order; PyMC sets all up before it samples the first.
    identity : int
        What the headers of its chains have in common.
    logp : callable, optional
        The model's log-density, once it is compiled.
    """

    is_interrupted: bool = False
    logs: list[ChainLog] = field(default_factory=list)
    identity: int = 0
    logp: LogDensity | None = None

    def add(self, log: ChainLog) -> None:
        """Take up a chain that is set up; with chain 0, a run begins."""
        if log.chain == 0:
            self.logs, self.is_interrupted = [], False
            self.identity, self.logp = secrets.randbits(64), None
        self.logs.append(log)
        if log.header is not None:
            self.identity = log.header.run


class DiskTrace(_ZarrChainBase, NDArray):  # type: ignore[misc] # PyMC ships no types
    """The draws of one chain, in memory for PyMC and on disk for later.

    `pymc.sample` makes a copy of it for each chain. Draws that are on disk already are not made
    again: `step.step` is replaced by a function that returns them, until the last, when the step
    method gets its state of then. So the progress bar, callbacks and results are those of a run
    that was never interrupted.

    It says that it is a chain of a Zarr trace because those alone are given the step method.
    """

    def __init__(self, folder: Path, var_names: Sequence[str] | None, model: Any):
        model = modelcontext(model)
        check_names(folder)
        super().__init__(model=model, vars=_variables(model, var_names))
        self._folder = folder
        self._run = _Run()
        self._step: Any = None

    @override
    def setup(self, draws: int, chain: int, sampler_vars: Any = None) -> None:
        # PyMC's copies are shallow, and would share the arrays.
        self.samples: dict[str, np.ndarray] = {}
        super().setup(draws, chain, sampler_vars)
        self._writer: ChainWriter | None = None
        self._log = ChainLog(self._folder, chain)
        self._log.check_whole()
        self._run.add(self._log)
        self._check_run()
        self._check_variables()
        if self._log.n_draws > draws:
            raise InputError(
                f"{self._log.path} has {self._log.n_draws} draws already, warm-up included, and "
                f"only {draws} are asked for: ask for at least as many, or give another path"
            )

    def _check_run(self) -> None:
        runs = chains_by_run(self._run.logs)
        if len(runs) > 1:
            raise InputError(
                f"{self._log.path} is of another run than {self._run.logs[runs[0][0]].path.name} "
                "beside it: put the file of the same run back; or, to make the chain again, move "
                "this one and its state files elsewhere"
            )

    def _check_variables(self) -> None:
        variables = {
            name: (tuple(map(int, self.var_shapes[name])), str(self.var_dtypes[name]))
            for name in self.varnames
        }
        self._header = Header(self._log.chain, variables, _versions(), self._run.identity)
        if self._log.header is None:
            return
        theirs, mine = self._log.header.variables, variables
        changed = [
            f"{name} was {theirs.get(name, 'not there')}, is {mine.get(name, 'not there')}"
            for name in [*theirs, *(n for n in mine if n not in theirs)]
            if theirs.get(name) != mine.get(name)
        ]
        if changed:
            self._refuse("of other variables (shape, dtype)", changed)

    def _refuse(self, what: str, changed: Sequence[str], log: ChainLog | None = None) -> NoReturn:
        raise InputError(
            f"the draws in {(log or self._log).path} are {what}: {'; '.join(changed[:3])}. They "
            "cannot be gone on from; keep the new draws under another path"
        )

    @override
    def link_stepper(self, step_method: Any) -> None:
        """Compare the step method with that of the draws on disk, and have it repeat them."""
        log = self._log
        self._check_chains()
        begins = settings(step_method)
        self._known, state = log.n_draws, None
        if log.header is not None:
            began = log.settings()
            changed = changed_settings(began, begins)
            if changed:
                self._refuse("by another step method or other settings", changed)
            if 0 < log.n_draws < self.draws:
                self._known, state = self._where_to_go_on()
        self._logp = self._log_density(step_method)
        if self.chain == 0:
            for each in self._run.logs:
                if each.n_draws:
                    self._check_model(each)
        if log.header is not None:
            self._tell(same_seed(began, begins))
        # Chains that are complete may be where nobody can write.
        if self._known < self.draws and not self._run.is_interrupted:
            header = replace(self._header, run=self._run.identity)
            self._writer = ChainWriter(log, self._known, header, begins)
        self._step = step_method
        self._stored: Iterator[Any] = log.draws(stop=self._known)
        self._values: Any = None
        if self._known or self._run.is_interrupted:
            step_method.step = self._repeating(state)

    def _check_chains(self) -> None:
        n_chains = len(self._run.logs)
        unasked = [k for k in chains_in(self._folder) if k >= n_chains]
        if unasked:
            raise InputError(
                f"{self._folder} has draws of chain {', '.join(map(str, unasked))} too, and only "
                f"{n_chains} chains are asked for: ask for at least "
                f"{unasked[-1] + 1}, or give another path"
            )

    def _where_to_go_on(self) -> tuple[int, Any]:
        number, state = self._log.state()
        if number == 0:
            raise InputError(
                f"{self._log.path} has {self._log.n_draws} draws, but no state of the sampler "
                "beside it is whole and of one of them, so that the chain cannot go on. "
                "pymc_mpimap.read_draws reads its draws; start again under another path"
            )
        return number, state

    def _log_density(self, step: Any) -> LogDensity:
        own = own_logp(step)
        if own is not None:
            return own
        # In the default mode, as the step method's own functions: another may round otherwise, or
        # take an hour for jobs that are meant to be compiled.
        if self._run.logp is None:
            self._run.logp = self.model.compile_logp()
        return self._run.logp

    def _check_model(self, log: ChainLog) -> None:
        """Compare what the model makes of kept draws with what it made of them then."""
        with_logp, last = newest_with_logp(log.n_draws), log.n_draws - 1
        kept = next(log.draws(with_logp))
        name = f"the log-density of draw {with_logp}"
        found = [difference(name, kept["logp"], self._logp(kept["point"]), _VISIBLE)]
        kept = next(log.draws(last))
        for variable, now in zip(self.varnames, self.fn(*kept["point"].values()), strict=True):
            found.append(difference(f"{variable} of draw {last}", kept["values"][variable], now))
        unequal = [each for each in found if each is not None]
        others = [each.what for each in unequal if each.is_other]
        if others:
            self._refuse("of another model or other data", others, log)
        if unequal:
            _logger.warning(
                "%s: %s. The chain goes on, but its draws will not be, bit for bit, those of a run "
                "without a break",
                log.path,
                unequal[0].what,
            )

    def _tell(self, is_same_seed: bool) -> None:
        log = self._log
        assert log.header is not None
        _logger.info(
            "Chain %d %s %d of %d draws, warm-up included, from %s",
            self.chain,
            "goes on after" if self._known < self.draws else "is complete:",
            self._known,
            self.draws,
            log.path,
        )
        if log.left_over:
            _logger.warning("%s: a draw that was only half written is left out", log.path)
        if log.n_draws < log.n_made:
            _logger.warning(
                "%s: of at least %d draws that were made, the last %d are not on disk (as after a "
                "loss of power, or in a copy that broke off), and are made again if asked for",
                log.path,
                log.n_made,
                log.n_made - log.n_draws,
            )
        if self._known < log.n_draws:
            _logger.warning(
                "%s: the sampler's state after the last draws is not on disk, so that %d of them "
                "are made again",
                log.path,
                log.n_draws - self._known,
            )
        if self._known and not is_same_seed:
            _logger.info(
                "It goes on with its own random numbers, as random_seed is not the one it began "
                "with, or was not given"
            )
        if log.header.versions != _versions():
            _logger.warning(
                "It was begun with %s, and this is %s: the draws to come may not be, bit for bit, "
                "those of then",
                log.header.versions,
                _versions(),
            )

    def _repeating(self, state: Any) -> Any:
        """Return what stands in for the step method while draws are repeated."""
        left = self._known

        def stored_step(_point: Any) -> tuple[Any, Any]:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            draw = next(self._stored)
            left -= 1
            if not left and not self._run.is_interrupted:
                # Now, and not before the next draw: in between, PyMC may tell it to stop tuning.
                del self._step.step
                if state is not None:
                    restore(self._step, state)
            self._values = draw
            return draw["point"], draw["stats"]

        return stored_step

    @override
    def record(
        self, point: Mapping[str, np.ndarray], sampler_stats: Any = None, *, in_warmup: bool
    ) -> None:
        if self._step is None:
            raise InputError(
                "draws are kept on disk for chains that are sampled one after the other; samplers "
                "of a population of chains, such as DEMetropolis, are not"
            )
        if self.draw_idx < self._known:
            draw = self._values
            if draw["in_warmup"] != in_warmup:
                was = "warm-up" if draw["in_warmup"] else "no warm-up"
                self._refuse("by another tune", [f"draw {self.draw_idx} was {was}"])
        else:
            assert self._writer is not None
            values = dict(zip(self.varnames, self.fn(*point.values()), strict=True))
            # Most variables are the point's own, and are on disk once.
            others = {n: None if v is values.get(n) else v for n, v in point.items()}
            logp = np.asarray(self._logp(point))[()] if has_logp(self.draw_idx) else None
            draw = {"values": values, "stats": sampler_stats}
            self._writer.append(
                values,
                (others, sampler_stats, logp),
                snapshot(self._step),
                in_warmup=in_warmup,
            )
        for name, value in draw["values"].items():
            self.samples[name][self.draw_idx] = value
        for arrays, stats in zip(self._stats, draw["stats"], strict=True):
            for name, value in stats.items():
                arrays[name][self.draw_idx] = value
        self.draw_idx += 1

    @override
    def record_sampling_state(self, step: Any = None) -> None:
        """Do nothing: the state is on disk with each draw."""

    @override
    def close(self) -> None:
        if self.draw_idx < self.draws:
            self._run.is_interrupted = True
        if self._step is not None:
            vars(self._step).pop("step", None)
        super().close()
        if self._writer is not None:
            self._writer.close()

    @property
    def _posterior(self) -> NoReturn:
        # PyMC looks at it where chains of a Zarr trace are to run in processes of their own.
        raise InputError(
            "draws are kept on disk for chains in one process: pass cores=1 to pm.sample"
        )

    @override
    def _slice(self, idx: slice) -> NDArray:
        plain = NDArray(
            model=self.model,
            vars=self.vars,
            fn=self.fn,
            var_shapes=self.var_shapes,
            var_dtypes=self.var_dtypes,
        )
        for name in ("chain", "samples", "sampler_vars", "draw_idx", "_stats"):
            setattr(plain, name, getattr(self, name))
        return plain._slice(idx)  # noqa: SLF001 # the same class's


def _versions() -> dict[str, str]:
    return {"PyMC": pymc.__version__, "NumPy": np.__version__}


def _variables(model: Any, var_names: Sequence[str] | None) -> Any:
    if var_names is None:
        return None
    unknown = sorted(set(var_names) - {v.name for v in model.unobserved_RVs})
    if unknown:
        raise InputError(
            f"the model has no variable {unknown[0]!r}; it has "
            f"{', '.join(v.name for v in model.unobserved_RVs)}"
        )
    return model.replace_rvs_by_values([v for v in model.unobserved_RVs if v.name in var_names])
