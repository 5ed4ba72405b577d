"""What `import mooncake_hicache` offers, what it costs, and that its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

import mooncake_hicache

PUBLIC_MODULES = [
    "mooncake_hicache",
    "mooncake_hicache.store",
    "mooncake_hicache.namespace",
    "mooncake_hicache.transfer",
]
HEAVY = ["numpy", "pydantic", "asyncio", "aiohttp", "typer", "rich", "prometheus_client", "torch"]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_all_names_exist_and_are_documented() -> None:
    for name in mooncake_hicache.__all__:
        value = getattr(mooncake_hicache, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert sorted(mooncake_hicache.__all__) == dir(mooncake_hicache)


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Stores"):
        _ = mooncake_hicache.Stores  # type: ignore[attr-defined]


def test_every_public_method_is_documented() -> None:
    kinds = (
        mooncake_hicache.Store,
        mooncake_hicache.Namespace,
        mooncake_hicache.TransferEngine,
        mooncake_hicache.Segment,
        mooncake_hicache.Batch,
    )
    for kind in kinds:
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_"):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


@pytest.mark.parametrize("name", [*PUBLIC_MODULES, "mooncake_hicache.config"])
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_importing_the_package_is_cheap() -> None:
    code = f"import sys, mooncake_hicache; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_a_store_needs_neither_the_command_line_nor_http() -> None:
    heavy = ["aiohttp", "typer", "rich", "prometheus_client", "torch", "sglang"]
    code = (
        "import sys; from mooncake_hicache import Store; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_the_log_is_silent_until_it_is_asked_for() -> None:
    code = (
        "import logging, mooncake_hicache; "
        "print([type(h).__name__ for h in logging.getLogger('mooncake_hicache').handlers])"
    )
    assert run_python(code) == "['NullHandler']"
