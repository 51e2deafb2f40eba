"""The interface for users: a trace on disk, and the draws in it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pymc_mpimap.draws.files import chains_in
from pymc_mpimap.draws.log import ChainLog, chains_by_run
from pymc_mpimap.errors import InputError, MapRectWarning

__all__ = ["disk_trace", "read_draws"]


def disk_trace(
    path: str | os.PathLike[str], *, var_names: Sequence[str] | None = None, model: Any = None
) -> Any:
    """Keep every draw on disk, and go on from the draws that are there.

    Pass it to ``pm.sample(trace=...)``. Each draw is on disk when the next one begins, with the
    sampler's state. Started again, the same script goes on after the last complete draw: nothing is
    tuned or drawn twice, and with the same `random_seed` the result is the same, bit for bit, as if
    nothing had happened. A larger `draws` than before makes finished chains longer.

    Sampling is PyMC's own: not nutpie's, which keeps no state to go on from. Chains run one after
    the other (``cores=1``).

    Parameters
    ----------
    path : str or path-like
        A folder. It is made if it does not exist; otherwise it must hold draws kept by this
        function, of the same model and settings.
    var_names : sequence of str, optional
        The variables to keep, by default all. (``pm.sample(var_names=...)`` does not concern a
        trace that it is given.)
    model : pymc.Model, optional
        By default that of the ``with`` block.

    Returns
    -------
    pymc.backends.base.BaseTrace
        For ``pm.sample(trace=...)``.

    Raises
    ------
    InputError
        Here, or by `pymc.sample` before it makes a draw: if the path holds something else; if its
        draws are of other variables, other settings, another `tune`, another model or other data
        (told by the log-density of a kept draw, and by all variables of the last one), or are more
        than asked for; if its chains are of different runs;
        if a file is damaged, which then stays as it is; if another process is adding draws; if
        anybody but the user may have written to the files; or if chains are to run in several
        processes.

    See Also
    --------
    read_draws : the draws so far, without a model.

    Examples
    --------
    >>> import tempfile
    >>> import pymc as pm
    >>> import pymc_mpimap as mpimap
    >>> path = tempfile.mkdtemp()
    >>> def sample(draws):
    ...     with pm.Model():
    ...         pm.Normal("x")
    ...         return pm.sample(
    ...             draws, tune=20, chains=1, cores=1, random_seed=1, progressbar=False,
    ...             quiet=True, compute_convergence_checks=False, trace=mpimap.disk_trace(path),
    ...         )
    >>> some = sample(10)
    >>> more = sample(30)  # as many more
    >>> more.posterior["x"].shape, bool((more.posterior["x"][:, :10] == some.posterior["x"]).all())
    ((1, 30), True)
    """
    # The package itself does without PyMC, which takes seconds to import.
    from pymc_mpimap.draws.trace import DiskTrace

    return DiskTrace(Path(path), var_names, model)


def read_draws(
    path: str | os.PathLike[str], *, warmup: bool = False
) -> dict[int, dict[str, np.ndarray]]:
    """Read the draws that `disk_trace` has kept, of a program that has ended or still runs.

    Nothing is unpickled, so that files may come from anybody; and nothing is written.

    Parameters
    ----------
    path : str or path-like
        The folder.
    warmup : bool
        Whether to put the draws of the warm-up before the others.

    Returns
    -------
    dict of int to dict of str to array
        For each chain that has begun, and each variable, an array of shape ``(n_draws, ...)``.

    Raises
    ------
    InputError
        If there are no kept draws there, or there is a file named like one of draws which is none,
        or whose header cannot be read.

    Warns
    -----
    MapRectWarning
        If draws are damaged or missing: which, and where in which file. All whole ones are
        returned, in their order. Also if chains are of different runs.

    Examples
    --------
    >>> import tempfile
    >>> import pymc as pm
    >>> import pymc_mpimap as mpimap
    >>> path = tempfile.mkdtemp()
    >>> with pm.Model():
    ...     pm.Normal("x", shape=3)
    ...     _ = pm.sample(
    ...         10, tune=20, chains=2, cores=1, random_seed=1, progressbar=False,
    ...         quiet=True, compute_convergence_checks=False, trace=mpimap.disk_trace(path),
    ...     )
    x
    >>> mpimap.read_draws(path)[1]["x"].shape
    (10, 3)
    """
    folder = Path(path)
    numbers = chains_in(folder)
    if not numbers:
        raise InputError(f"{folder} holds no draws that disk_trace has kept")
    logs = [ChainLog(folder, number) for number in numbers]
    unread = [f"{log.path}: {what}" for log in logs if (what := log.unread()) is not None]
    absent = sorted({*range(numbers[-1])} - {*numbers})
    if absent:
        unread.append(
            f"{folder} has no chain {', '.join(map(str, absent))}, but chain {numbers[-1]}"
        )
    if unread:
        warnings.warn(
            f"not all draws can be read; those that are whole are returned. {'. '.join(unread)}",
            MapRectWarning,
            stacklevel=2,
        )
    runs = chains_by_run(logs)
    if len(runs) > 1:
        groups = [", ".join(map(str, chains)) for chains in runs]
        warnings.warn(
            f"the chains in {folder} are of {len(runs)} different runs: {'; '.join(groups)}. They "
            "may be of different models or data; put those of each run in a folder of its own",
            MapRectWarning,
            stacklevel=2,
        )
    result = {}
    for log in logs:
        in_warmup, values = log.values()
        kept = slice(None) if warmup else ~in_warmup
        result[log.chain] = {name: value[kept] for name, value in values.items()}
    return result
