"""Reports of pools: evaluations, their speed, the load of each rank, what was rejected."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pymc_mpimap.errors import Incident, NotFinite
from pymc_mpimap.pool.finite import not_finite
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.reasons import Reason, Reasons, in_lines
from pymc_mpimap.tally import N_COUNTS, TALLY, reasons

__all__ = ["PoolReport", "Recorder"]

_log = logging.getLogger("pymc_mpimap")


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
    reasons : tuple of Reason
        Why they raised: how often for each reason, which jobs, and the first exception.
    not_finite : dict of str to int
        How often each job's value was NaN or infinite, by job and value ("job 3 of f: nan"). NaN
        and -inf reject the proposal.
    odd_values : tuple of Reason
        The same by value.
    solves : int
        How many ODEs were solved, on all ranks, by `solve_ivp`.
    failed_solves : dict of str to int
        Why solves failed, and how often each; their proposals were rejected. Where the right-hand
        side or its derivative was not finite, with the state, its value and the time.
    lost : tuple of str
        Which ranks were lost, how, and what followed.
    """

    evaluations: int
    seconds: float
    busy: tuple[float, ...]
    hosts: tuple[str, ...]
    rejected: dict[str, int] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    solves: int = 0
    failed_solves: dict[str, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    not_finite: dict[str, int] = field(default_factory=dict)
    odd_values: tuple[Reason, ...] = ()

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
        lines += [f"  {said}" for said in self.lost]
        return "\n".join([*lines, *self.troubles()])

    def troubles(self) -> list[str]:
        """Return the lines on what was rejected, was not finite, or could not be solved."""
        lines = in_lines("rejected", self.reasons)
        lines += in_lines("not finite", self.odd_values)
        if self.failed_solves:
            lines.append(f"  {sum(self.failed_solves.values())} of {self.solves} solves failed:")
            lines += [f"    {times} times {why}" for why, times in self.failed_solves.items()]
        return lines


class Recorder:
    """Collects what a `PoolReport` tells."""

    def __init__(self, hosts: Sequence[str]):
        self.hosts = tuple(hosts)
        self._busy = [0] * len(hosts)
        self._evaluations = 0
        self._begun = self._ended = 0
        self._rejected: Counter[str] = Counter()
        self._reasons = Reasons()
        self._lost: list[str] = []
        self._rejected_now: set[str] = set()
        self._not_finite: Counter[str] = Counter()
        self._odd_values = Reasons()
        self._told = 0
        self._counted = np.zeros(N_COUNTS, np.int64)
        self._before = TALLY.copy()

    def from_the_beginning(self) -> None:
        """Count all that was solved in this process, before there was a pool too."""
        self._before[:] = 0

    def counted(self, counts: Sequence[int] | np.ndarray) -> None:
        """Add to what this process counts, see `tally`, what another rank has counted."""
        self._counted += counts

    def evaluated(self, busy: Sequence[int], ended: int) -> None:
        """Record an evaluation, the nanoseconds that each rank worked for it, and when it ended."""
        self._ended = ended
        if self._evaluations == 0:
            self._begun = self._ended
        else:
            for rank, spent in enumerate(busy):
                self._busy[rank] += spent
        self._evaluations += 1

    def lost(self, said: str) -> None:
        """Record that a rank was lost, and what followed."""
        self._lost.append(said)

    def noted(self, incidents: Sequence[Incident]) -> None:
        """Record jobs that raised and whose proposal is rejected, or whose value is not finite."""
        for failure in incidents:
            if isinstance(failure, NotFinite):
                self._noted(failure)
                continue
            job = f"job {failure.job} of {failure.function}"
            self._rejected[job] += 1
            self._reasons.count(failure.function, failure.job, failure.exception, failure.kind)
            self._rejected_now.add(job)

    def _noted(self, odd: NotFinite) -> None:
        self._not_finite[str(odd)] += 1
        self._odd_values.count(odd.function, odd.job, odd.value, odd.value)

    def gave(
        self, program: Program, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> None:
        """Record which jobs' values of an evaluation are not finite, but for the rejected ones."""
        for odd in not_finite(program, inputs, outputs, self._rejected_now):
            self._noted(odd)
        if self._rejected_now:
            self._rejected_now.clear()

    def tell(self, where: str = "of the pool") -> None:
        """Log what kept proposals from being taken, unless all of it was told before.

        Values of -inf alone are no trouble: many models have them outside of their support.

        Parameters
        ----------
        where : str, optional
            Of which evaluations it is.
        """
        report = self.report()
        serious = [report.rejected, report.failed_solves]
        serious.append({k: n for k, n in report.not_finite.items() if not k.endswith(": -inf")})
        count = sum(sum(counts.values()) for counts in serious)
        if count > self._told:
            self._told = count
            # Where there are no maps, a model's ODEs are counted all the same.
            what = (
                f"Of {report.evaluations} evaluations {where}"
                if report.evaluations
                else (f"Of {report.solves} solves of ODEs")
            )
            troubles = "\n".join(report.troubles())
            _log.warning("%s, some gave no valid value:\n%s", what, troubles)

    def report(self) -> PoolReport:
        """Return the account so far."""
        counts = self._counted + TALLY - self._before
        return PoolReport(
            self._evaluations,
            1e-9 * (self._ended - self._begun),
            tuple(1e-9 * spent for spent in self._busy),
            self.hosts,
            dict(self._rejected),
            self._reasons.often(),
            int(counts[0]),
            reasons(counts),
            tuple(self._lost),
            dict(self._not_finite),
            self._odd_values.often(),
        )
