"""One call of the benchmark: its options, its folders, its results so far, and its servers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from bench.gpu import disk
from bench.gpu.install import environment
from bench.gpu.server import Server

WORK = Path("/tmp/hicache-gpu")
FILE_FOLDER = Path("/dev/shm/hicache-file")
SSD_FOLDER = "hicache-bench-ssd"
FLUSH_TIMEOUT_S = 150
WITH_SSD = ("ours", "restart", "ssd")
WITHOUT_L2 = ("none", "linker")

STORAGE = {
    "ours": ["--hicache-storage-backend", "mooncake"],
    "file": ["--hicache-storage-backend", "file"],
    "linker": [
        "--enable-unified-cache-external-linker",
        *("--unified-cache-external-linker-backend", "mooncake"),
    ],
}


class Run:
    """One call of this command: its options, its results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        self.site = Path(options.site)
        self.lengths = [int(length) for length in options.lengths.split(",")]
        self.disk = disk.facts()
        self.ssd = self._ssd_folder()
        self.results: dict[str, Any] = {
            "command": "python3 -m bench.gpu " + " ".join(sys.argv[1:]),
            "machine": machine(),
            "commit": options.commit,
            "disk": self.disk,
            "ssd_folder": str(self.ssd or "off"),
            "servers": {},
            "samples": [],
        }

    def _ssd_folder(self) -> Path | None:
        """Return where pages go that leave memory, None if nowhere."""
        given = self.options.ssd
        if given == "auto":
            place = disk.best_place(self.disk["places"])
            return place / SSD_FOLDER if place else None
        return None if given == "off" else Path(given)

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return float(self.options.time_limit) - (time.monotonic() - self.begun)

    def save(self) -> None:
        """Write what there is."""
        text = json.dumps(self.results, indent=1)
        (self.out / "gpu.json").write_text(text + "\n", encoding="utf-8")

    def pack_logs(self) -> None:
        """Put the logs of servers and node into one file."""
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as tar:
            for path in [*WORK.glob("*.log"), *WORK.glob("*.jsonl"), *WORK.glob("node/*.log")]:
                tar.add(path, path.name)

    def environment(self, tag: str) -> dict[str, str]:
        """Return the environment of a server."""
        found = {
            **environment(self.site),
            "MOONCAKE_HICACHE_RUNTIME_DIR": str(WORK / "node"),
            "MOONCAKE_HICACHE_POOL_SIZE": self.options.pool,
            "MOONCAKE_HICACHE_SSD": "off",
            "MOONCAKE_HICACHE_SGLANG": "required" if is_ours(tag) else "off",
            "HICACHE_BENCH_EVENTS": str(WORK / f"{tag}.jsonl"),
            "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(FILE_FOLDER),
        }
        if self.ssd is not None and tag in WITH_SSD:
            found["MOONCAKE_HICACHE_SSD"] = str(self.ssd)
            found["MOONCAKE_HICACHE_SSD_WRITE_BUDGET"] = "0"
            found["MOONCAKE_HICACHE_FLUSH_TIMEOUT_S"] = str(FLUSH_TIMEOUT_S)
        found.update(item.split("=", 1) for item in self.options.env)
        return found

    def server(self, tag: str, kind: str, device_tokens: int, l2_gb: int) -> Server:
        """Return a server of a kind: `none`, `l2`, `ours`, `linker` or `file`."""
        flags = ["--max-total-tokens", str(device_tokens)]
        if kind not in WITHOUT_L2:
            flags += ["--enable-hierarchical-cache", "--hicache-size", str(l2_gb)]
        flags += STORAGE.get(kind, [])
        flags += self.options.flag
        WORK.mkdir(parents=True, exist_ok=True)
        (WORK / f"{tag}.jsonl").unlink(missing_ok=True)
        self.results["servers"][tag] = {"flags": flags}
        return Server(WORK, flags, self.environment(tag), WORK / f"{tag}.log")


def machine() -> dict[str, object]:
    """Return what this runs on."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "gpu": gpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads per core": _threads_per_core(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _threads_per_core() -> int:
    siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    if not siblings.exists():
        return 0
    ranges = [part.split("-") for part in siblings.read_text(encoding="utf-8").strip().split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)


def versions(run: Run) -> dict[str, str]:
    """Return the versions of what is installed, as the servers see them."""
    code = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps({n: m.version(n) for n in "
        "('sglang', 'torch', 'triton', 'mooncake-hicache')}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(run.site), cwd="/tmp"
    )
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def is_ours(tag: str) -> bool:
    """Whether a server with this name has our tier."""
    return "ours" in tag or "linker" in tag or tag in WITH_SSD


def _own_command(run: Run, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooncake_hicache", *args]
    own = run.environment("ours")
    return subprocess.run(command, env=own, cwd="/tmp", capture_output=True, text=True, check=False)


def stop_node(run: Run) -> None:
    """Stop our node, if there is one, and forget what it kept."""
    _own_command(run, "stop", "--now")
    if run.ssd is not None:
        shutil.rmtree(run.ssd, ignore_errors=True)


def flush_node(run: Run) -> dict[str, Any]:
    """Stop our node as an operator does: what is only in memory is written to SSD first."""
    begun = time.monotonic()
    done = _own_command(run, "stop")
    seconds = time.monotonic() - begun
    log = run.ssd / "pages.log" if run.ssd else None
    written = log.stat().st_blocks * 512 if log and log.exists() else 0
    return {
        "seconds": seconds,
        "file_bytes": written,
        "status": done.returncode,
        "says": (done.stdout + done.stderr).strip()[-500:],
    }


def node_stats(run: Run) -> dict[str, Any]:
    """Return what our node counts; empty if it does not answer."""
    with contextlib.suppress(ValueError):
        stats = json.loads(_own_command(run, "status", "--json").stdout)["stats"] or {}
        return {name: value for name, value in stats.items() if isinstance(value, int)}
    return {}
