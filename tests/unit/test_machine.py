"""What a machine offers, read from files as kernels and container runtimes write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_hicache.machine import (
    huge_pages,
    memory_on_offer,
    numa_node_count,
    shmem_huge_policy,
)

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    meminfo = (
        f"MemTotal: {64 * GIB // 1024} kB\nMemFree: {8 * GIB // 1024} kB\n"
        f"MemAvailable: {32 * GIB // 1024} kB\n"
        "HugePages_Total: 10\nHugePages_Free: 7\nHugepagesize: 2048 kB\n"
    )
    write(tmp_path, {"proc/meminfo": meminfo})
    return tmp_path


def test_without_cgroups_the_machine_counts(root: Path) -> None:
    offer = memory_on_offer(root)
    assert offer.size_bytes == 32 * GIB
    assert "MemAvailable" in offer.bound


def test_a_version_2_limit_anywhere_above_the_process_counts(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "0::/pods/engine\n",
            "sys/fs/cgroup/pods/memory.max": f"{16 * GIB}\n",
            "sys/fs/cgroup/pods/memory.current": f"{6 * GIB}\n",
            "sys/fs/cgroup/pods/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
            "sys/fs/cgroup/pods/engine/memory.max": "max\n",
            "sys/fs/cgroup/pods/engine/memory.current": f"{6 * GIB}\n",
        },
    )
    offer = memory_on_offer(root)
    assert offer.size_bytes == 12 * GIB
    assert offer.bound.endswith("pods/memory.max")


def test_a_container_sees_its_own_limit_at_the_mounts_root(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "0::/../../kubepods/somewhere/not/visible\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{1 * GIB}\n",
        },
    )
    assert memory_on_offer(root).size_bytes == 3 * GIB


def test_a_version_1_limit_counts_and_no_limit_does_not(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "8:pids:/\n4:memory:/engine\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1 * GIB}\n",
            "sys/fs/cgroup/memory/engine/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/engine/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/engine/memory.stat": f"cache 1\ntotal_inactive_file {GIB // 2}\n",
        },
    )
    offer = memory_on_offer(root)
    assert offer.size_bytes == 0
    assert offer.bound.endswith("engine/memory.limit_in_bytes")


def test_a_machine_that_hides_everything_offers_nothing_and_raises_nothing(tmp_path: Path) -> None:
    assert memory_on_offer(tmp_path).size_bytes == 0
    assert huge_pages(tmp_path) == (0, 0, 0)
    assert shmem_huge_policy(tmp_path) is None
    assert numa_node_count(tmp_path) == 1


def test_huge_pages_and_numa(root: Path) -> None:
    write(
        root,
        {
            "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always [advise] never\n",
            "sys/devices/system/node/node0/meminfo": "",
            "sys/devices/system/node/node1/meminfo": "",
            "sys/devices/system/node/online": "0-1\n",
        },
    )
    assert huge_pages(root) == (10, 7, 2 << 20)
    assert shmem_huge_policy(root) == "advise"
    assert numa_node_count(root) == 2


def test_this_machine_offers_something() -> None:
    assert memory_on_offer().size_bytes > 0
