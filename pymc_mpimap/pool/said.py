"""What workers say beside their results, as JSON: rank 0 unpickles nothing of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pymc_mpimap.errors import JobFailure
from pymc_mpimap.pool.loss import Loss

__all__ = ["decode", "encode"]


def encode(said: Sequence[JobFailure | Loss | np.ndarray]) -> bytes:
    """Return failures, losses, or costs of blocks, as bytes; nothing for none."""
    if not said:
        return b""
    return json.dumps([_plain(one) for one in said]).encode()


def _plain(one: JobFailure | Loss | np.ndarray) -> tuple[str, Any]:
    if isinstance(one, np.ndarray):
        return "costs", one.tolist()
    return "loss" if isinstance(one, Loss) else "failure", asdict(one)


def decode(encoded: bytes) -> list[Any]:
    """Return what `encode` was given."""
    return [_MAKERS[kind](content) for kind, content in json.loads(encoded)]


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "costs": lambda content: np.array(content, np.float64),
    "loss": lambda content: Loss(**content),
    "failure": lambda content: JobFailure(**content),
}
