"""Where the secret of transfer engines comes from, and who may read it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mooncake_hicache.errors import InvalidArgumentError, IoError
from mooncake_hicache.secret import SECRET_FILE, resolve_secret


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime folder of this test."""
    runtime = tmp_path / "run"
    monkeypatch.setenv("MOONCAKE_HICACHE_RUNTIME_DIR", str(runtime))
    return runtime


def test_the_users_own_file_is_made_once_and_is_private(folder: Path) -> None:
    first = resolve_secret("")
    assert len(first) == 64
    assert resolve_secret("") == first
    assert stat.S_IMODE((folder / SECRET_FILE).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [SECRET_FILE], "drafts are gone"


def test_processes_that_start_at_once_agree(folder: Path) -> None:
    code = "from mooncake_hicache.secret import resolve_secret; print(resolve_secret(''))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1


def test_a_text_is_itself_and_none_is_a_choice() -> None:
    assert resolve_secret(" open sesame ") == "open sesame"
    assert resolve_secret("none") == ""


def test_a_file_must_be_private_and_hold_something(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(IoError, match="MOONCAKE_HICACHE_TRANSFER_SECRET"):
        resolve_secret(str(path))
    path.write_text("sesame\n")
    path.chmod(0o644)
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        resolve_secret(str(path))
    path.chmod(0o640)  # A group may be meant to read it: that is how services share one.
    assert resolve_secret(str(path)) == "sesame"
    path.chmod(0o600)
    assert resolve_secret(str(path)) == "sesame"
    path.write_text("\n")
    with pytest.raises(InvalidArgumentError, match="1 bytes"):
        resolve_secret(str(path))
