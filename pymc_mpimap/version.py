"""The version of this package, and where its source is."""

from pathlib import Path

__all__ = ["PACKAGE", "__version__"]

__version__ = "0.1.0"

PACKAGE = Path(__file__).parent
"""The folder of the package, whatever folder in it a module is in."""
