"""Output of results: as text for people, and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytensor

from pymc_mpimap.bench.groups import Group
from pymc_mpimap.bench.together import available_cores
from pymc_mpimap.version import __version__

__all__ = ["document", "environment", "heading", "table"]


def environment(hosts: Sequence[str]) -> dict[str, Any]:
    """Return on what was measured.

    Parameters
    ----------
    hosts : sequence of str
        Of each rank.
    """
    return {
        "pymc_mpimap": __version__,
        "python": platform.python_version(),
        "pytensor": pytensor.__version__,
        "numpy": np.__version__,
        "mpi": _mpi(),
        "processor": _processor(),
        "cores": available_cores(),
        "load": round(os.getloadavg()[0], 2),  # to tell a run beside others from one alone
        "ranks": len(hosts),
        "hosts": len(set(hosts)),
    }


def _mpi() -> str:
    """Return the MPI library's name, if the pool has loaded one."""
    loaded = sys.modules.get("mpi4py.MPI")
    if loaded is None:
        return ""
    said: str = loaded.Get_library_version()
    words = said.replace("\t", " ").replace("\0", "").splitlines()[0].split(",")[0]
    return " ".join(words.replace("Version:", "").split())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def heading(hosts: Sequence[str]) -> str:
    """Return the first lines: what is measured, and on what."""
    e = environment(hosts)
    ranks = f"{e['ranks']} rank{'s' if e['ranks'] > 1 else ''} on {e['hosts']} host"
    lines = [
        f"pymc_mpimap {e['pymc_mpimap']}, PyTensor {e['pytensor']}, Python {e['python']}",
        (
            f"{ranks}{'s' if e['hosts'] > 1 else ''}, {e['cores']} cores here"
            f" ({e['processor']}), {e['mpi'] or 'no MPI'}"
        ),
        "Time of one value with its gradient; ratio to the first line of each table.",
    ]
    if e["ranks"] == 1:
        lines.append("There is one rank: start it by mpiexec -n 2 to measure what ranks bring.")
    elif e["cores"] < e["ranks"] and e["hosts"] == 1:
        lines.append("There are more ranks than cores: they take turns.")
    return "\n".join(lines)


def table(group: Group) -> str:
    """Return a group's results as text."""
    lines = [f"{group.name}: {group.title}"]
    if not group.timings:
        return f"{lines[0]}\n  needs at least 2 ranks"
    lines.append(f"  {'':24}{'median':>12}{'minimum':>12}{'ratio':>9}")
    first = group.timings[0].median
    for timing in group.timings:
        numbers = f"{_time(timing.median)}{_time(timing.minimum)}{timing.median / first:9.2f}"
        lines.append(f"  {timing.name:24}{numbers}")
    lines += [f"  {fact}" for fact in group.facts]
    lines.append(f"  {group.meaning}")
    if group.stan:
        said = ", ".join(f"{name} {value:g} us" for name, value in group.stan.items())
        lines.append(f"  Stan, on 2 cores of an AMD EPYC: {said}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:9.1f} us" if seconds < 0.1 else f"{1e3 * seconds:9.1f} ms"


def document(groups: Sequence[Group], hosts: Sequence[str], *, quick: bool) -> str:
    """Return all results as JSON; times in seconds."""
    found = {
        "benchmark": "bench",
        "quick": quick,
        "environment": environment(hosts),
        "groups": [
            {
                "name": group.name,
                "title": group.title,
                "meaning": group.meaning,
                "timings": [
                    {
                        "name": timing.name,
                        "median": timing.median,
                        "minimum": timing.minimum,
                        "ratio": timing.median / group.timings[0].median,
                        "times": timing.times,
                    }
                    for timing in group.timings
                ],
                "facts": [vars(fact) for fact in group.facts],
                "stan_microseconds": group.stan,
            }
            for group in groups
        ],
    }
    return json.dumps(found, indent=1) + "\n"
