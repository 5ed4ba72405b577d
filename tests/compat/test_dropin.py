"""The distribution: installed by pip, its programs, and what it says beside the original."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_hicache.compat.environment import original_distributions
from mooncake_hicache.compat.missing import MISSING
from tests.compat.processes import DROPIN, environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


def run(
    code: str, *paths: Path | str, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders importable, and not the drop-in of the working tree."""
    path = ":".join(str(path) for path in paths)
    return subprocess.run(
        [sys.executable, *(arguments or ("-c", code))],
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The drop-in, installed by pip into a folder of its own."""
    if importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("no scikit-build-core: `pip install -e .[dev]` has it")
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--target", str(folder), str(DROPIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder


def test_pip_installs_modules_and_programs(installed: Path) -> None:
    for name in ("engine", "http_metadata_server", "transfer_engine_bench"):
        assert (installed / "mooncake" / f"{name}.py").is_file()
    code = "import mooncake.engine as m; print(m.__file__, m.TransferEngine().get_rpc_port())"
    done = run(code, installed, *_own_paths())
    assert done.stdout.split() == [str(installed / "mooncake" / "engine.py"), "0"], done.stderr
    for program in (
        "transfer_engine_bench",
        "mooncake_http_metadata_server",
        "transfer_engine_topology_dump",
        "mc_store_rest_server",
        "mooncake_client",
    ):
        path = installed / "bin" / program
        done = run("", installed, *_own_paths(), arguments=(str(path), "--help"))
        assert done.returncode == 0, done.stderr
        assert program in done.stdout


def test_the_versions_of_both_distributions_agree() -> None:
    ours = tomllib.loads((DROPIN.parent / "pyproject.toml").read_text(encoding="utf-8"))
    dropin = tomllib.loads((DROPIN / "pyproject.toml").read_text(encoding="utf-8"))
    version = ours["project"]["version"]
    assert dropin["project"]["version"] == version
    assert dropin["project"]["dependencies"] == [f"mooncake-hicache=={version}"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("mooncake_transfer_engine-0.3.13.post1.dist-info", "mooncake-transfer-engine"),
        (
            "mooncake_transfer_engine_non_cuda-0.3.13.post1.dist-info",
            "mooncake-transfer-engine-non-cuda",
        ),
        ("mooncake_transfer_engine_cuda13-0.4.0.dist-info", "mooncake-transfer-engine-cuda13"),
    ],
)
def test_it_refuses_to_be_beside_the_original(tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n")
    done = run("import mooncake.engine", DROPIN, tmp_path, *_own_paths())
    assert done.returncode == 1
    assert f"pip uninstall {name} mooncake-hicache-dropin" in done.stderr
    assert "ImportError" in done.stderr


def test_others_with_similar_names_are_left_alone(tmp_path: Path) -> None:
    for folder in (
        "mooncake_hicache-0.1.0.dist-info",
        "mooncake_hicache_dropin-0.1.0.dist-info",
        "mooncake-1.0.dist-info",
        "my_mooncake_transfer_engine-1.0.dist-info",
    ):
        (tmp_path / folder).mkdir()
    assert original_distributions([str(tmp_path), "/nowhere/at/all"]) == []


def test_modules_that_are_missing_say_what_to_do() -> None:
    names = sorted(MISSING)
    code = f"""
import importlib, importlib.util
import mooncake.engine
for name in {names!r}:
    try:
        importlib.import_module("mooncake." + name)
    except ModuleNotFoundError as error:
        print(error.name, "mooncake-hicache-dropin has no" in str(error))
try:
    import mooncake.never_heard_of
except ModuleNotFoundError as error:
    print(error)
"""
    done = run(code, DROPIN, *_own_paths())
    expected = [f"mooncake.{name} True" for name in names]
    assert done.stdout.splitlines() == [*expected, "No module named 'mooncake.never_heard_of'"], (
        done.stderr
    )


def _own_paths() -> list[str]:
    """Where this process has its packages: what a virtual environment would have."""
    return [path for path in sys.path if path and Path(path).is_dir() and path != str(DROPIN)]
