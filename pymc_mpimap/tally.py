"""What compiled code counts in this process: solves of ODEs, and why some of them failed."""

from __future__ import annotations

import numpy as np

__all__ = ["N_COUNTS", "REASONS", "TALLY", "counts"]

REASONS = {
    1: "it took more than max_steps steps between two output times",
    2: "more accuracy was asked for than floating point has",
    3: "the step had become too small, and the error was still too large",
    4: "the Newton iteration did not converge with the smallest step",
    8: "the right-hand side was not finite",
    9: "the right-hand side was not finite at the first time",
    10: "the right-hand side was not finite, however small the step",
    11: "the right-hand side was not finite where a step had ended",
}
"""Why a solve fails, by the solver's own numbers."""

N_COUNTS = 12

TALLY = np.zeros(N_COUNTS, np.int64)
"""Where compiled code counts: first all solves, then failures by their reason's number."""


def counts() -> tuple[int, ...]:
    """Return the counts since the process began."""
    return tuple(TALLY.tolist())
