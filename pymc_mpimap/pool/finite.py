"""Jobs that gave NaN or infinity as their values; derivatives are not looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pymc_mpimap.errors import NotFinite
from pymc_mpimap.map import Map
from pymc_mpimap.pool.program import Program

__all__ = ["not_finite"]


def not_finite(
    program: Program,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    rejected: Collection[str] = (),
) -> list[NotFinite]:
    """Return which jobs have a value that is not finite, and what it is.

    One look at all values of a map, of less than a microsecond, is all that is done if they are.

    Parameters
    ----------
    program : Program
    inputs, outputs : sequence of array
        The Op's.
    rejected : collection of str
        Jobs of the form "job 3 of f", for which -inf stands in.
    """
    found: list[NotFinite] = []
    for position, k, output in program.values:
        values = outputs[position]
        if not np.isfinite(values).all():
            m, route = program.maps[k], program.routes[k]
            for job, value in _jobs(m, route, output, inputs, values):
                if f"job {job} of {m.job.name}" not in rejected:
                    found.append(NotFinite(m.job.name, job, value))
    return found


def _jobs(
    m: Map, route: Sequence[int], output: int, inputs: Sequence[np.ndarray], values: np.ndarray
) -> list[tuple[int, str]]:
    """Return the jobs with values that are not finite, and the worst of these of each."""
    shapes = m.job.outputs[output].shapes
    if shapes is None:
        owners = np.repeat(np.arange(m.n_jobs), values.size // m.n_jobs)
    else:
        held = m.data[shapes]
        lengths = (
            inputs[route[m.from_graph.index(shapes)]] if held is None else held.block(0, m.n_jobs)
        )
        owners = np.repeat(np.arange(m.n_jobs), np.prod(lengths, axis=1))
    flat = values.reshape(-1)
    odd: dict[int, str] = {}
    # What comes later replaces what comes before: NaN, the worst, is last.
    for name, where in (("-inf", np.isneginf), ("inf", np.isposinf), ("nan", np.isnan)):
        odd.update(dict.fromkeys(owners[where(flat)].tolist(), name))
    return sorted(odd.items())
