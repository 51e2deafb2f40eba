"""Why jobs gave no valid value, counted: a rare reason is not hidden by a usual one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Reason", "Reasons", "in_lines"]

_MOST_TEXTS = 10
"""Texts of one kind of exception, in one function, that are reasons of their own."""

_MOST_KINDS = 50
"""Kinds of exceptions that are told apart, in all functions."""

_MOST_LINES = 20
"""Reasons that are printed."""

_MOST_JOBS = 3
"""Jobs of each reason that are named."""

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Reason:
    """Jobs that gave no valid value for one reason; ``str`` gives it as a line.

    Attributes
    ----------
    function : str
        Of which jobs.
    text : str
        What the first of them said.
    times : int
    jobs : dict of int to int
        How often each job, by its number.
    alike : bool
        Whether all said the same. Else the texts differ, in numbers mostly.
    """

    function: str
    text: str
    times: int
    jobs: dict[int, int]
    alike: bool

    def __str__(self) -> str:
        often = sorted(self.jobs, key=lambda job: -self.jobs[job])
        example = self.text if self.alike else f"{self.text} (the first of several texts)"
        if len(often) == 1:
            return f"{_times(self.times)}: job {often[0]} of {self.function}: {example}"
        named = [f"{job} ({_times(self.jobs[job])})" for job in often[:_MOST_JOBS]]
        rest = len(often) - len(named)
        last = f"{rest} more" if rest else named.pop()
        jobs = f"{', '.join(named)} and {last}"
        return f"{_times(self.times)}: jobs {jobs} of {self.function}: {example}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


class Reasons:
    """Counts of reasons, of bounded number whatever the texts are."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Count] = {}
        self._kinds: dict[tuple[str, str], set[str]] = {}

    def count(self, function: str, job: int, text: str, kind: str) -> None:
        """Count one more.

        Parameters
        ----------
        function : str
        job : int
        text : str
            Texts that differ in numbers alone are one reason.
        kind : str
            The class of the exception. With many texts, or many kinds, what comes later is one
            reason.
        """
        if (function, kind) not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = "another exception"
        texts = self._kinds.setdefault((function, kind), set())
        pattern = _NUMBER.sub("#", text)
        if pattern not in texts and len(texts) >= _MOST_TEXTS:
            pattern = f"{kind}, another text"
        else:
            texts.add(pattern)
        self._counts.setdefault((function, pattern), _Count(text)).add(job, text)

    def often(self) -> tuple[Reason, ...]:
        """Return the reasons, the most frequent first."""
        reasons = [
            Reason(function, count.text, count.jobs.total(), dict(count.jobs), count.alike)
            for (function, _), count in self._counts.items()
        ]
        return tuple(sorted(reasons, key=lambda reason: -reason.times))


class _Count:
    def __init__(self, text: str):
        self.text, self.alike = text, True
        self.jobs: Counter[int] = Counter()

    def add(self, job: int, text: str) -> None:
        self.jobs[job] += 1
        self.alike &= text == self.text


def in_lines(what: str, reasons: Sequence[Reason]) -> list[str]:
    """Return lines that tell of reasons, the rarest in one if there are many."""
    lines = [f"  {what} {reason}" for reason in reasons[:_MOST_LINES]]
    if rest := reasons[_MOST_LINES:]:
        times = _times(sum(reason.times for reason in rest))
        lines.append(f"  {what} {times}: for {len(rest)} more reasons, which are in the report")
    return lines
