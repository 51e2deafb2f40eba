"""The version of this package; ranks compare it when they meet."""

__all__ = ["__version__"]

__version__ = "0.1.0"
