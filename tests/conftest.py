"""What every test may rely on: a node folder of its own, and SGLang importable without a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.processes import end_all_with
from tests.serving.server import SITE, has_gpu

RUNTIME_DIR = "MOONCAKE_HICACHE_RUNTIME_DIR"
SSD = "MOONCAKE_HICACHE_SSD"
SESSION = "HICACHE_TEST_SESSION"
"""Set to the same in every process that these tests start, so that none outlives them."""

# Examples are printed when they fail; a slow machine is no failure.
settings.register_profile(
    "project", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Set up the process before any test module is imported."""
    for name in [name for name in os.environ if name.startswith("MOONCAKE_HICACHE_")]:
        del os.environ[name]  # A test says what it sets; the shell's settings are not its own.
    # Short, because a unix socket's path may have 107 bytes only.
    os.environ[RUNTIME_DIR] = tempfile.mkdtemp(prefix="hicache-test-")
    os.environ[SESSION] = os.environ[RUNTIME_DIR]
    os.environ[SSD] = "off"  # The user's cache folder is none of ours: a test names its own.
    if not has_gpu() and importlib.util.find_spec("sglang") is not None:
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
        sys.path.insert(0, str(SITE))
        import sglang_on_cpu

        sglang_on_cpu.activate()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the nodes that tests may have left running, and remove their folder."""
    folder = os.environ.get(SESSION, "")
    if folder and Path(folder).is_dir():
        end_all_with(f"{SESSION}={folder}")
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests that start servers last, and skip what this machine cannot do."""
    items.sort(key=lambda item: item.get_closest_marker("serving") is not None)
    has_sglang = importlib.util.find_spec("sglang") is not None
    for item in items:
        if item.get_closest_marker("serving") and not has_sglang:
            item.add_marker(pytest.mark.skip(reason="SGLang is not installed: make installs it"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> object:
    """A private node folder for one test: short, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hicache-test-") as folder:
        monkeypatch.setenv(RUNTIME_DIR, folder)
        yield Path(folder)
        end_all_with(folder)
