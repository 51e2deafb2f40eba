"""PyTensor's configuration where it changes compiled code: the same on all ranks."""

from __future__ import annotations

import sys
from typing import Any

from pytensor.configdefaults import config

__all__ = ["apply_settings", "current_settings"]


def current_settings() -> dict[str, Any]:
    """Return PyTensor's configuration where it changes compiled code, for the workers."""
    names = ("mode", "linker", "optimizer", "floatX", "cast_policy", "numba__fastmath")
    settings = {name: getattr(config, name) for name in names}
    if "jax" in sys.modules:
        settings["jax_enable_x64"] = sys.modules["jax"].config.jax_enable_x64
    return settings


def apply_settings(settings: dict[str, Any]) -> None:
    """Configure PyTensor (and JAX, where it is in use) as on the controller."""
    for name, value in settings.items():
        if name == "jax_enable_x64":
            import jax

            jax.config.update(name, value)
        elif getattr(config, name) != value:
            setattr(config, name, value)
