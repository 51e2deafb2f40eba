"""What a pool has done: how often, how fast, how busy each rank was, what was rejected."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pymc_mpimap.errors import JobFailure

__all__ = ["PoolReport", "Recorder"]

MOST_LINES = 5
"""How many rejected jobs are printed; all of them are in the report."""


@dataclass(frozen=True)
class PoolReport:
    """A pool's account of itself; ``print`` it.

    Attributes
    ----------
    evaluations : int
        Round trips: with NUTS one for each value and gradient.
    seconds : float
        Wall time from the first evaluation's end (which includes compilation) to the last's.
    busy : tuple of float
        For each rank, the seconds that it spent in jobs during that time.
    hosts : tuple of str
        Where each rank runs.
    rejected : dict of str to int
        How often each job raised and its proposal was rejected.
    messages : dict of str to str
        For each such job, its last exception.
    """

    evaluations: int
    seconds: float
    busy: tuple[float, ...]
    hosts: tuple[str, ...]
    rejected: dict[str, int] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Evaluations a second; 0 before the second one."""
        return (self.evaluations - 1) / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        ranks = len(self.busy)
        lines = [
            (
                f"{self.evaluations} evaluations on {ranks} rank{'s' if ranks > 1 else ''}, "
                f"{self.per_second:.1f} a second"
            ),
        ]
        for rank, (busy, host) in enumerate(zip(self.busy, self.hosts, strict=True)):
            share = 100 * busy / self.seconds if self.seconds > 0 else 0.0
            lines.append(f"  rank {rank} on {host}: busy {share:5.1f} % of the time")
        often = sorted(self.rejected, key=lambda job: -self.rejected[job])
        for job in often[:MOST_LINES]:
            times = self.rejected[job]
            said = "once" if times == 1 else f"{times} times"
            lines.append(f"  rejected {said}: {job}: {self.messages[job]}")
        if rest := often[MOST_LINES:]:
            total = sum(self.rejected[job] for job in rest)
            lines.append(f"  rejected {total} times: {len(rest)} more jobs, see report().rejected")
        return "\n".join(lines)


class Recorder:
    """Collects what a `PoolReport` tells."""

    def __init__(self, hosts: Sequence[str]):
        self.hosts = tuple(hosts)
        self._busy = np.zeros(len(hosts))
        self._evaluations = 0
        self._begun = self._ended = 0.0
        self._rejected: Counter[str] = Counter()
        self._messages: dict[str, str] = {}

    def evaluated(self, busy: Sequence[float]) -> None:
        """Record an evaluation and the seconds that each rank worked for it."""
        self._ended = time.perf_counter()
        if self._evaluations == 0:
            self._begun = self._ended
        else:
            self._busy += busy
        self._evaluations += 1

    def rejected(self, failures: Sequence[JobFailure]) -> None:
        """Record jobs that raised and whose proposal is rejected."""
        for failure in failures:
            job = f"job {failure.job} of {failure.function}"
            self._rejected[job] += 1
            self._messages[job] = failure.exception

    def report(self) -> PoolReport:
        """Return the account so far."""
        return PoolReport(
            self._evaluations,
            self._ended - self._begun,
            tuple(self._busy),
            self.hosts,
            dict(self._rejected),
            dict(self._messages),
        )
