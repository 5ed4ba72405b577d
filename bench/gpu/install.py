"""Unpack what was carried, build and install the project: all into one folder, no network."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EVENTS_MODULE = "hicache_bench_events"
_METADATA = "Metadata-Version: 2.1\nName: hicache-bench-events\nVersion: 0\n"


def environment(site: Path) -> dict[str, str]:
    """Return the environment in which everything runs: what is in `site` comes first."""
    return {
        **os.environ,
        "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}",
        "SGLANG_IS_FLASHINFER_AVAILABLE": "false",
        # A release that pins a newer torch: its tree in Rust is built against that one.
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python",
        "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def install(carry: Path, site: Path) -> dict[str, float]:
    """Install into `site` and return the seconds of each step. Does nothing when that was done.

    Raises:
        CalledProcessError: pip or the compiler failed; its output was printed.
    """
    marker = site / ".installed"
    if marker.exists():
        return {}
    site.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    def timed(name: str, step: object, *args: object) -> None:
        begun = time.monotonic()
        assert callable(step)
        step(*args)
        seconds[name] = round(time.monotonic() - begun, 1)

    with ThreadPoolExecutor() as threads:
        unpacking = [
            threads.submit(timed, name, _unpack, carry / f"{name}.tar.xz", site)
            for name in ("sglang", "kernel")
        ]
        timed("wheels", _install_wheels, carry, site)
        timed("build", build, carry, site)
        for step in unpacking:
            step.result()
    _install_events(site)
    marker.touch()
    return seconds


def _unpack(archive: Path, site: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(site, filter="data")


def _pip(site: Path, *args: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--target", str(site), *args]
    subprocess.run(command, check=True, env={**environment(site), **variables}, cwd=REPOSITORY)


def install_core(carry: Path, site: Path) -> None:
    """Install our package and what it imports, without SGLang. Does nothing when that was done."""
    marker = site / ".core"
    if marker.exists():
        return
    site.mkdir(parents=True, exist_ok=True)
    _install_wheels(carry, site)
    build(carry, site)
    marker.touch()


def _install_wheels(carry: Path, site: Path) -> None:
    _pip(site, *(str(wheel) for wheel in sorted((carry / "whl").glob("*.whl"))))


def build(carry: Path, site: Path) -> None:
    """Build and install the project. Warnings of a compiler that we do not develop with are shown
    and tolerated: this is no place to fail for them."""
    libraries = site.parent / f"{site.name}-libraries"
    _unpack(carry / "libraries.tar.xz", libraries)
    compiler = site / "c++"
    real = os.environ.get("CXX", "g++")
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which(real) or real} "$@" -Wno-error\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    _pip(
        site,
        "--no-build-isolation",
        "--upgrade",
        str(REPOSITORY),
        CXX=str(compiler),
        CMAKE_ARGS=f"-DXXHASH_INCLUDE_DIR={libraries / 'include'} "
        f"-DVERBS_INCLUDE_DIR={libraries / 'include'} "
        f"-DLIBURING_ROOT={libraries} -DOPENSSL_ROOT_DIR={libraries}",
        CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count() or 1),
    )


def _install_events(site: Path) -> None:
    """Install `events.py` as a plugin of its own, so that SGLang's processes load it."""
    shutil.copy(Path(__file__).with_name("events.py"), site / f"{EVENTS_MODULE}.py")
    about = site / "hicache_bench_events-0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(_METADATA, encoding="utf-8")
    entry = f"[sglang.srt.plugins]\n{EVENTS_MODULE} = {EVENTS_MODULE}:register\n"
    (about / "entry_points.txt").write_text(entry, encoding="utf-8")
