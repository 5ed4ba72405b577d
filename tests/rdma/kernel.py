"""The guest kernel: User-Mode Linux with soft-RoCE, found, or built from Debian's sources.

    python -m tests.rdma.kernel            prints where it is, building it when it is missing
    python -m tests.rdma.kernel --cached   prints where it is, or would be; status 1: it is missing

HICACHE_UML names one that exists already. Otherwise it lies in the user's cache folder,
under a name that changes with the configuration below. Building takes about 12 minutes of CPU time
and 1.5 GB of disk, and needs apt-get (for the package linux-source) and packages.txt.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OVERRIDE = "HICACHE_UML"

# What must be in it, beside what these select themselves. InfiniBand wants a PCI bus, even an
# empty one.
OPTIONS = """
VIRTIO_UML UML_PCI_OVER_VIRTIO UML_PCI_OVER_VIRTIO_DEVICE_ID=1234
64BIT HOSTFS TMPFS TMPFS_XATTR DEVTMPFS PROC_FS SYSFS OVERLAY_FS UNIX98_PTYS
NET INET IPV6 UNIX PACKET NETDEVICES NET_CORE VETH BRIDGE DUMMY BONDING INET_DIAG UNIX_DIAG
NET_SCHED NET_SCH_NETEM NET_SCH_TBF
INFINIBAND INFINIBAND_USER_ACCESS INFINIBAND_USER_MAD INFINIBAND_ADDR_TRANS RDMA_RXE
EPOLL EVENTFD SIGNALFD TIMERFD AIO IO_URING FUTEX SHMEM MEMFD_CREATE POSIX_MQUEUE SYSVIPC
CROSS_MEMORY_ATTACH HIGH_RES_TIMERS NO_HZ_IDLE PRINTK BINFMT_ELF BINFMT_SCRIPT
HW_RANDOM UML_RANDOM NULL_CHAN SSL PROC_PAGE_MONITOR
""".split()  # noqa: SIM905 - a list of 60 lines says no more.
TICKS_HZ = 1000
"""Of a second: several processes share the one CPU, in shorter turns than with the usual 100."""


def _folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "mooncake-hicache" / "rdma-guest"


def cached() -> Path:
    """Return where the kernel is, or would be."""
    if override := os.environ.get(OVERRIDE):
        return Path(override)
    text = " ".join([*OPTIONS, str(TICKS_HZ)])
    return _folder() / f"linux-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _sources(folder: Path) -> Path:
    """Fetch and unpack Debian's kernel sources of this release."""
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-source"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Depends: (linux-source-\S+)", depends)
    if found is None:
        raise RuntimeError("apt-cache knows no linux-source: is this Debian, and apt-get updated?")
    name = found.group(1)
    subprocess.run(
        ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name],
        cwd=folder,
        check=True,
    )
    (package,) = folder.glob("linux-source-*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "package")], check=True)
    (archive,) = (folder / "package/usr/src").glob("linux-source-*.tar.xz")
    tree = folder / "tree"
    tree.mkdir()
    subprocess.run(
        ["tar", "-xJf", str(archive), "--strip-components=1", "-C", str(tree)], check=True
    )
    return tree


def build(target: Path, jobs: int) -> None:
    """Build the kernel into `target`."""
    missing = [tool for tool in ("gcc", "make", "flex", "bison", "bc") if not shutil.which(tool)]
    if missing:
        raise RuntimeError(f"building the guest kernel needs {', '.join(missing)}: packages.txt")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as name:
        tree = _sources(Path(name))
        config = tree / "arch/um/Kconfig"
        text = config.read_text()
        config.write_text(re.sub(r"(config HZ\n\tint\n\tdefault )100\b", rf"\g<1>{TICKS_HZ}", text))
        lines = [f"CONFIG_{name}" if "=" in name else f"CONFIG_{name}=y" for name in OPTIONS]
        (tree / "wanted").write_text("\n".join(lines) + "\n")
        with (target.parent / "build.log").open("w") as log:

            def make(*arguments: str) -> None:
                command = ["nice", "make", "ARCH=um", f"-j{jobs}", *arguments]
                done = subprocess.run(
                    command, cwd=tree, stdout=log, stderr=subprocess.STDOUT, check=False
                )
                if done.returncode != 0:
                    raise RuntimeError(f"{' '.join(command)} failed, see {log.name}")

            make("allnoconfig", "KCONFIG_ALLCONFIG=wanted")
            got = (tree / ".config").read_text().splitlines()
            if left_out := [line for line in lines if line not in got]:
                raise RuntimeError(f"these sources have no {', '.join(left_out)}")
            make("linux")
        subprocess.run(["strip", "linux"], cwd=tree, check=True)
        part = target.with_suffix(".part")
        shutil.copy(tree / "linux", part)
        part.replace(target)


def ensure(jobs: int = 0) -> Path:
    """Return the kernel, built if it is missing. One process builds, the others wait for it."""
    target = cached()
    if target.exists():
        return target
    if OVERRIDE in os.environ:
        raise RuntimeError(f"{OVERRIDE} names {target}, which does not exist")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            begin = time.monotonic()
            print(f"building the guest kernel into {target} (minutes, once)", file=sys.stderr)
            build(target, jobs or os.cpu_count() or 1)
            print(f"built in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return target


if __name__ == "__main__":
    if "--cached" in sys.argv[1:]:
        print(cached())
        sys.exit(not cached().exists())
    print(ensure(int(os.environ.get("JOBS", "0"))))
