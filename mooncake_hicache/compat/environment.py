"""Whether the original Mooncake is installed beside the drop-in: they share one import name."""

from __future__ import annotations

from importlib.metadata import distributions

__all__ = ["original_distributions", "refuse_original"]

_ORIGINAL = "mooncake-transfer-engine"
"""The original's wheels are named this, or this and a suffix (`-non-cuda`, `-cuda13`)."""


def original_distributions() -> list[str]:
    """Return the names of the original's distributions in this environment, sorted."""
    names = {
        str(found.metadata["Name"] or "").lower().replace("_", "-") for found in distributions()
    }
    return sorted(name for name in names if name == _ORIGINAL or name.startswith(f"{_ORIGINAL}-"))


def refuse_original() -> None:
    """Raise ImportError if the original is installed here too, naming the remedy.

    Both write into the folder `mooncake` of this environment: whichever was installed last has
    overwritten files of the other, and what runs then is a mixture of two programs.
    """
    if names := original_distributions():
        listed = " ".join(names)
        raise ImportError(
            f"the original Mooncake ({listed}) and mooncake-hicache-dropin are both installed, and "
            f"both provide the module `mooncake`: run `pip uninstall {listed} "
            "mooncake-hicache-dropin`, then install the one you want"
        )
