"""The doctor's checks. Each looks at one thing and says what it found; none changes anything."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mooncake_hicache import machine
from mooncake_hicache.cli.checks_cluster import cluster_checks
from mooncake_hicache.cli.checks_ssd import ssd_checks
from mooncake_hicache.cli.finding import Check
from mooncake_hicache.cli.reach import look
from mooncake_hicache.config import StoreOptions, environment_name, options_without_mistakes
from mooncake_hicache.errors import Error
from mooncake_hicache.node.paths import check_visible, node_paths
from mooncake_hicache.units import format_size
from mooncake_hicache.version import __version__

__all__ = ["all_checks"]

PLUGIN_GROUP = "sglang.srt.plugins"
PLUGIN_NAME = "mooncake_hicache"
DESCRIPTORS_BESIDE_CLIENTS = 64
POOL_SMALL_BYTES = 1 << 30


def all_checks(given: dict[str, Any]) -> list[Check]:
    """Run every check.

    Args:
        given: Options that take precedence over environment and file.
    """
    checks = list(_versions())
    try:
        options = StoreOptions(**given)
    except Error as error:
        checks.append(Check("options", "error", str(error), "correct it where it is set"))
        options = options_without_mistakes(given)  # One mistake must not hide the others.
    else:
        changed = [n for n in StoreOptions.model_fields if options.source_of(n) != "default"]
        checks.append(
            Check("options", "ok", f"set: {', '.join(changed)}" if changed else "defaults")
        )
    for name, check in _CHECKS:
        try:
            checks.extend(check(options))
        except Error as error:
            checks.append(Check(name, "error", str(error)))
    return checks


def _versions() -> Iterator[Check]:
    parts = [f"mooncake-hicache {__version__}", f"Python {platform.python_version()}"]
    parts.append(f"Linux {platform.release()}")
    for package in ("sglang", "torch"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    yield Check("versions", "ok", ", ".join(parts))


def _memory(options: StoreOptions) -> Iterator[Check]:
    offer = machine.memory_on_offer()
    pool = options.pool_size_bytes(offer)  # Raises with its own remedy when it cannot be met.
    finding = (
        f"pool_size {options.pool_size} is {format_size(pool)} of {format_size(offer.size_bytes)} "
        "on offer "
        f"(by {offer.bound})"
    )
    if pool < POOL_SMALL_BYTES:
        yield Check(
            "memory",
            "warning",
            finding,
            "a pool this small holds few pages: set pool_size or free memory",
        )
    else:
        yield Check("memory", "ok", finding)


def _shared_memory(options: StoreOptions) -> Iterator[Check]:
    pool = options.pool_size_bytes()
    try:
        descriptor = os.memfd_create("mooncake-hicache-doctor", os.MFD_CLOEXEC)
    except OSError as error:
        yield Check(
            "shared memory",
            "error",
            f"memfd_create: {error.strerror}",
            "allow the memfd_create system call in the container's seccomp profile",
        )
        return
    try:
        # Only a size, no memory stands behind it: this meets limits on files, not on memory.
        os.ftruncate(descriptor, pool)
    except OSError as error:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        yield Check(
            "shared memory",
            "error",
            f"a memfd of {format_size(pool)}: {error.strerror}",
            f"raise `ulimit -f` (now {limit} bytes)" if limit >= 0 else "set a smaller pool_size",
        )
    else:
        yield Check(
            "shared memory",
            "ok",
            f"a memfd of {format_size(pool)} can be made; /dev/shm is not used",
        )
    finally:
        os.close(descriptor)


def _huge_pages(options: StoreOptions) -> Iterator[Check]:
    reserved, free, size = machine.huge_pages()
    pool = options.pool_size_bytes()
    needed = -(-pool // size) if size else 0
    have = (
        f"{free} of {reserved} huge pages of {format_size(size)} are free, the pool needs {needed}"
    )
    remedy = f"`sysctl vm.nr_hugepages={reserved - free + needed}` before the node starts"
    if options.huge_pages == "never":
        yield Check("huge pages", "note", "turned off by the option huge_pages")
    elif size and free >= needed:
        yield Check("huge pages", "ok", have)
    elif options.huge_pages == "always":
        yield Check("huge pages", "error", have, remedy + ", or set huge_pages to auto")
    else:
        yield from _transparent_huge_pages(have, remedy)


def _transparent_huge_pages(have: str, remedy: str) -> Iterator[Check]:
    policy = machine.shmem_huge_policy()
    finding = f"{have}; transparent huge pages for shared memory: {policy or 'not known'}"
    if policy in ("always", "within_size", "advise", "force"):
        yield Check("huge pages", "ok", finding)
    else:
        yield Check(
            "huge pages",
            "warning",
            finding + ": copies are slower by some percent",
            "`echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`, or " + remedy,
        )


def _numa(options: StoreOptions) -> Iterator[Check]:
    count = machine.numa_node_count()
    if options.numa_node >= count:
        yield Check(
            "NUMA",
            "error",
            f"numa_node {options.numa_node}, and this machine has {count}",
            f"set numa_node to -1 … {count - 1}",
        )
    else:
        place = (
            "left to the kernel" if options.numa_node < 0 else f"bound to node {options.numa_node}"
        )
        yield Check(
            "NUMA", "ok", f"{count} NUMA node{'s' if count > 1 else ''}, the pool is {place}"
        )


def _runtime_folder(options: StoreOptions) -> Iterator[Check]:
    paths = node_paths(options)
    folder = paths.folder
    check_visible(paths)
    if folder.exists() or folder.is_symlink():
        node_paths(options, create=True)  # Exists already: only its owner and mode are looked at.
        yield Check("runtime folder", "ok", f"{folder} is private")
        return
    above = next(parent for parent in folder.parents if parent.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        yield Check("runtime folder", "ok", f"{folder} will be made by the first client")
    else:
        yield Check(
            "runtime folder",
            "error",
            f"{folder} is missing and {above} cannot be written to",
            f"set runtime_dir ({environment_name('runtime_dir')}) to a folder of your own",
        )


def _limits(options: StoreOptions) -> Iterator[Check]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = options.clients_max + DESCRIPTORS_BESIDE_CLIENTS
    if files != resource.RLIM_INFINITY and files < needed:
        yield Check(
            "limits",
            "warning",
            f"{files} open files are allowed, {options.clients_max} clients need {needed}",
            f"`ulimit -n {needed}` or a smaller clients_max",
        )
        return
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < 2 * options.pool_size_bytes():
        yield Check(
            "limits",
            "error",
            f"the address space is limited to {format_size(space)}, too little to map the pool",
            "`ulimit -v unlimited`",
        )
        return
    yield Check("limits", "ok", f"{files} open files, address space large enough")


def _node(options: StoreOptions) -> Iterator[Check]:
    view = look(options)
    if view.stats is not None:
        yield Check(
            "node",
            "ok",
            f"pid {view.stats['pid']} answered at {view.paths.socket} in {view.answer_ms:.1f} ms",
        )
        trouble = view.stats.get("cluster", {}).get("trouble", "")
        if trouble:
            finding = f"it is no member of its cluster: {trouble}"
            yield Check("node", "warning", finding, "see what is said of the cluster below")
    elif view.is_held:
        pid = view.state.pid if view.state else "unknown"
        yield Check(
            "node",
            "error",
            f"pid {pid} holds {view.paths.node_lock} and does not answer: {view.failure}",
            "the next client replaces it; or `mooncake-hicache stop --force`; its log is "
            f"{view.paths.log}",
        )
    elif options.autostart and not options.socket:
        yield Check(
            "node", "note", f"none runs; the first client starts one at {view.paths.socket}"
        )
    else:
        yield Check(
            "node",
            "error",
            f"none answers at {view.paths.socket}, and clients may not start one",
            "`mooncake-hicache node --detach`",
        )


def _plugin(options: StoreOptions) -> Iterator[Check]:
    try:
        sglang_version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        yield Check("SGLang plugin", "note", "SGLang is not installed in this environment")
        return
    found = [e for e in metadata.entry_points(group=PLUGIN_GROUP) if e.name == PLUGIN_NAME]
    allowed = os.environ.get("SGLANG_PLUGINS")
    if not found:
        yield Check(
            "SGLang plugin",
            "error",
            f"SGLang {sglang_version} is installed and the entry point {PLUGIN_NAME} is not",
            "install mooncake-hicache with pip into the environment that runs SGLang",
        )
    elif options.sglang == "off":
        yield Check(
            "SGLang plugin",
            "warning",
            f"switched off by {environment_name('sglang')}",
            f"unset {environment_name('sglang')}",
        )
    elif allowed and PLUGIN_NAME not in [name.strip() for name in allowed.split(",")]:
        yield Check(
            "SGLang plugin",
            "warning",
            f"SGLANG_PLUGINS={allowed} leaves it out",
            f"SGLANG_PLUGINS={allowed},{PLUGIN_NAME}",
        )
    else:
        yield Check(
            "SGLang plugin",
            "ok",
            f"SGLang {sglang_version} will load it; --hicache-storage-backend mooncake means this "
            "package",
        )


def _temporary_space(options: StoreOptions) -> Iterator[Check]:
    """The log and the state file need a little room where the runtime folder is."""
    paths = node_paths(options)
    check_visible(paths)
    folder: Path = paths.folder
    above = folder if folder.exists() else next(p for p in folder.parents if p.exists())
    status = os.statvfs(above)
    free = status.f_bavail * status.f_frsize
    if free < 1 << 20:
        yield Check(
            "log space",
            "warning",
            f"{format_size(free)} free at {above}",
            "free space there, or set log_file",
        )


_CHECKS: tuple[tuple[str, Callable[[StoreOptions], Iterator[Check]]], ...] = (
    ("memory", _memory),
    ("shared memory", _shared_memory),
    ("huge pages", _huge_pages),
    ("NUMA", _numa),
    ("runtime folder", _runtime_folder),
    ("log space", _temporary_space),
    ("limits", _limits),
    ("ssd", ssd_checks),
    ("node", _node),
    ("cluster", cluster_checks),
    ("SGLang plugin", _plugin),
)
