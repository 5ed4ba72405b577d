"""Whether the original Mooncake is installed beside the drop-in: they share one import name."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

__all__ = ["original_distributions", "refuse_original"]

# The original's wheels: this, or this and a suffix (`-non-cuda`, `-cuda13`). Looked for by the name
# of their folder: reading the metadata of every distribution takes a fifth of a second.
_ORIGINAL = re.compile(
    r"(mooncake[-_.]transfer[-_.]engine(?:[-_.][a-z0-9_.]+?)?)-[^-]+\.(?:dist-info|egg-info)", re.I
)


def original_distributions(folders: Iterable[str] | None = None) -> list[str]:
    """Return the names of the original's distributions in this environment, sorted.

    Args:
        folders: Where packages are; by default those of `sys.path`.
    """
    names = set()
    for folder in sys.path if folders is None else folders:
        try:
            with os.scandir(folder or ".") as entries:
                found = [_ORIGINAL.fullmatch(entry.name) for entry in entries]
        except OSError:
            continue  # Not there, or an archive.
        names |= {re.sub("[-_.]+", "-", match.group(1)).lower() for match in found if match}
    return sorted(names)


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
