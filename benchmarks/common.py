"""What the benchmarks share: options, results in a file, a question to every rank."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap
from pymc_mpimap.bench.output import environment
from pymc_mpimap.bench.timing import Timing


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks have."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    return parser


def keep(path: Path | None, benchmark: str, hosts: Sequence[str], **content: Any) -> None:
    """Write results to a file, if one was asked for."""
    if path is not None:
        found = {"benchmark": benchmark, "environment": environment(hosts), **content}
        path.write_text(json.dumps(found, indent=1) + "\n")


def row(timing: Timing, first: Timing) -> dict[str, Any]:
    """Return a timing as JSON has it."""
    return {
        "name": timing.name,
        "median": timing.median,
        "minimum": timing.minimum,
        "ratio": timing.median / first.median,
        "times": timing.times,
    }


def median_minimum(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(seconds)), "minimum": float(min(seconds))}


class Census:
    """Asks every rank for some numbers of its own.

    It is a job: several a rank, so that every rank has one. Answers are told apart by process, so
    this works on one host.
    """

    def __init__(self, ranks: int, ask: Callable[[], Sequence[float]], length: int):
        @mpimap.numeric_job(derivatives=None, length=1 + length)
        def answer(_theta: np.ndarray, _job: None) -> np.ndarray:
            return np.array([os.getpid(), *ask()], dtype=float)

        theta = pt.dscalar("theta")
        answers = mpimap.map_rect(answer, theta, 4 * ranks, name="census", grain_size=1)
        self._function = pytensor.function([theta], answers.reshape((4 * ranks, 1 + length)))
        self()

    def __call__(self) -> dict[int, np.ndarray]:
        """Return each process's latest answer."""
        rows = self._function(time.perf_counter())
        return {int(row[0]): row[1:] for row in rows}
