"""Settings of libraries where they change what is computed: the same on all ranks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pytensor.configdefaults import config

__all__ = ["apply_settings", "current_settings", "fixed_settings"]

# These can be changed at any time: rank 0 sends them with each program.
_SENT = (
    "mode",
    "linker",
    "floatX",
    "cast_policy",
    "numba__fastmath",
    "gcc__cxxflags",
    "cycle_detection",
    "openmp",
    "openmp_elemwise_minsize",
    "optdb__max_use_ratio",
    "optdb__position_cutoff",
    "scan__allow_gc",
    "on_opt_error",
    "tensor__insert_inplace_optimizer_validate_nb",
)

# These are fixed when PyTensor is imported: the ranks compare them when they meet.
_FIXED = (
    "optimizer",
    "optimizer_excluding",
    "optimizer_including",
    "optimizer_requiring",
    "lib__amdlibm",
    "scan__allow_output_prealloc",
    "tensor__cmp_sloppy",
)


def current_settings() -> dict[str, Any]:
    """Return PyTensor's settings where they change compiled code, and NumPy's for errors."""
    settings = {name: getattr(config, name) for name in _SENT}
    settings["numpy_errors"] = np.geterr()
    if "jax" in sys.modules:
        settings["jax_enable_x64"] = sys.modules["jax"].config.jax_enable_x64
    return settings


def fixed_settings() -> dict[str, str]:
    """Return the part of that configuration that cannot be changed in this process."""
    return {name: str(getattr(config, name)) for name in _FIXED}


def apply_settings(settings: dict[str, Any]) -> None:
    """Configure PyTensor, NumPy (and JAX, where it is in use) as on the controller."""
    for name, value in settings.items():
        if name == "jax_enable_x64":
            import jax

            jax.config.update(name, value)
        elif name == "numpy_errors":
            np.seterr(**value)
        elif getattr(config, name) != value:
            setattr(config, name, value)
