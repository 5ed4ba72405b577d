"""Write the type stubs of the compiled core: `python tools/stubs.py FILE` (`make stubs`)."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "mooncake_hicache._core"


def stubs() -> str:
    """Return the stubs that nanobind derives from the module as it is installed."""
    importlib.import_module(MODULE)  # A missing build says so here, not in a long traceback below.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "_core.pyi"
        command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", MODULE, "-o", str(path)]
        subprocess.run(command, check=True)
        return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(stubs(), encoding="utf-8")
