"""Reports of workers beside their results, as JSON: rank 0 unpickles nothing of theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pymc_mpimap.errors import Incident, JobFailure, NotFinite
from pymc_mpimap.pool.loss import Loss

__all__ = ["decode", "encode"]


def encode(said: Sequence[Incident | Loss | np.ndarray]) -> bytes:
    """Return incidents, losses, or costs of blocks, as bytes; nothing for none."""
    if not said:
        return b""
    return json.dumps([_plain(one) for one in said]).encode()


def _plain(one: Incident | Loss | np.ndarray) -> tuple[str, Any]:
    if isinstance(one, np.ndarray):
        return "costs", one.tolist()
    kind = next(kind for kind, made in _KINDS.items() if isinstance(one, made))
    return kind, asdict(one)


def decode(encoded: bytes) -> list[Any]:
    """Return what `encode` was given."""
    return [
        np.array(content, np.float64) if kind == "costs" else _KINDS[kind](**content)
        for kind, content in json.loads(encoded)
    ]


_KINDS: dict[str, type[Incident | Loss]] = {
    "loss": Loss,
    "failure": JobFailure,
    "odd": NotFinite,
}
