"""The package's version, read from its installed metadata so that it is written once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("mooncake-hicache")
except PackageNotFoundError:  # Run from a source tree that is not installed.
    __version__ = "0+unknown"
