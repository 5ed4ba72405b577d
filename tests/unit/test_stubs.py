"""The committed stubs are those of the core as it is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_stubs_are_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("nanobind")
    fresh = tmp_path / "_core.pyi"
    subprocess.run([sys.executable, str(ROOT / "tools/stubs.py"), str(fresh)], check=True)
    committed = ROOT / "mooncake_hicache/_core.pyi"
    assert committed.read_text(encoding="utf-8") == fresh.read_text(encoding="utf-8"), "make stubs"
