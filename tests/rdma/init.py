"""First process of the guest: mounts, makes soft-RoCE devices, runs the command, powers off.

Started by the guest's kernel with the host's root, read-only, as /. What the command writes goes
into memory, but for the folders that plan.json lists. Only the standard library: no venv is active.

Device i is rxe<i> on eth<i> with address 10.77.<i>.1; all hang on one bridge by their other ends
sw<i>, so real packets go from each to each.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
MS_MOVE = 8192
POWER_OFF = 0x4321FEDC
FRAME_SIZE = 4200
"""Of Ethernet: room for RoCE's MTU of 4096."""
NEW_ROOT = "/run/root"
BACKLOG_COUNT = 1_000_000
"""Packets that may wait to be received, so that none is dropped when the one CPU is late. It is not
only slower: rdma_rxe of Linux 6.1 tells that a READ was done, without its bytes, when the peer
could not send the answer ("Failed sending ACK", then a warning of rxe_completer() in dmesg)."""


def mount(kind: str, source: str, target: str, options: str = "", flags: int = 0) -> None:
    """Mount, or say what failed."""
    if LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mounting {kind} on {target}: {os.strerror(error)}")


def enter_root(plan: dict[str, object]) -> None:
    """Make a writable root out of the host's, and move there."""
    for kind in ("proc", "sysfs", "devtmpfs"):
        mount(kind, kind, {"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev"}[kind])
    mount("tmpfs", "run", "/run", "size=75%")
    for folder in ("upper", "work", "root"):
        Path("/run", folder).mkdir()
    mount("overlay", "root", NEW_ROOT, "lowerdir=/,upperdir=/run/upper,workdir=/run/work,xino=off")
    for folder in ("run", "proc", "sys", "dev"):
        Path(NEW_ROOT, folder).mkdir(exist_ok=True)
    mount("tmpfs", "run", f"{NEW_ROOT}/run")
    for folder in ("proc", "sys", "dev"):
        mount("", f"/{folder}", f"{NEW_ROOT}/{folder}", flags=MS_MOVE)
    os.chroot(NEW_ROOT)
    os.chdir("/")
    for folder, kind in {"/dev/pts": "devpts", "/dev/shm": "tmpfs", "/tmp": "tmpfs"}.items():
        Path(folder).mkdir(exist_ok=True)
        mount(kind, kind, folder)
    for name, source in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        Path("/dev", name).symlink_to(f"/proc/self/fd{source}")
    for folder in plan["shared"]:  # type: ignore[attr-defined]
        Path(folder).mkdir(parents=True, exist_ok=True)
        mount("hostfs", folder, folder, folder)


def show_clock_rate(plan: dict[str, object]) -> None:
    """Tell perftest how fast the time stamp counter runs: this kernel does not."""
    if not plan["cpu_mhz"]:
        return
    shown = Path("/run/cpuinfo")
    shown.write_text(Path("/proc/cpuinfo").read_text() + f"cpu MHz\t\t: {plan['cpu_mhz']}\n")
    subprocess.run(["mount", "--bind", str(shown), "/proc/cpuinfo"], check=True)


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def make_devices(count: int) -> None:
    """Make the soft-RoCE devices and wait until their ports are up."""
    conf = Path("/proc/sys/net/ipv4/conf")
    for name in ("all", "default"):
        (conf / name / "rp_filter").write_text("0")
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    Path("/proc/sys/net/core/netdev_max_backlog").write_text(str(BACKLOG_COUNT))
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "mtu", str(FRAME_SIZE), "type", "bridge", "mcast_snooping", "0")
    run("ip", "link", "set", "br0", "up")
    for i in range(count):
        near, far = f"eth{i}", f"sw{i}"
        ends = ("mtu", str(FRAME_SIZE), "type", "veth", "peer", "name", far, "mtu", str(FRAME_SIZE))
        run("ip", "link", "add", near, *ends)
        run("ip", "link", "set", far, "master", "br0", "up")
        # All addresses are in one subnet and on one host: answer for one's own alone.
        for key, value in {"accept_local": 1, "arp_ignore": 1, "arp_announce": 2}.items():
            (conf / near / key).write_text(str(value))
        run("ip", "addr", "add", f"10.77.{i}.1/16", "dev", near)
        run("ip", "link", "set", near, "up")
        run("rdma", "link", "add", f"rxe{i}", "type", "rxe", "netdev", near)
    states = [Path(f"/sys/class/infiniband/rxe{i}/ports/1/state") for i in range(count)]
    deadline = time.monotonic() + 5
    while not all("ACTIVE" in state.read_text() for state in states):
        if time.monotonic() > deadline:
            raise TimeoutError("the ports of the soft-RoCE devices do not come up")
        time.sleep(0.01)


def run_command(plan: dict[str, object], control: Path) -> int:
    """Run what was asked for, with its output going where the host reads it."""
    with (control / "out").open("ab") as out:
        return subprocess.run(
            plan["command"],  # type: ignore[call-overload, no-any-return]
            cwd=plan["folder"],
            env=plan["environment"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=lift_limits,
            check=False,
        ).returncode


def lift_limits() -> None:
    """Allow pinning and descriptors as an RDMA host would."""
    import resource

    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(control: Path) -> None:
    """Set up, run, write the status, power off."""
    status = 125
    try:
        plan = json.loads((control / "plan.json").read_text())
        enter_root(plan)
        show_clock_rate(plan)
        make_devices(plan["devices"])
        (control / "ready").write_text(Path("/proc/uptime").read_text())
        status = run_command(plan, control)
    except BaseException:  # noqa: BLE001 - whatever it is, the guest must power off.
        traceback.print_exc()  # To the console, which the host keeps.
    try:
        (control / "status.part").write_text(str(status))
        (control / "status.part").rename(control / "status")
    finally:
        os.sync()
        LIBC.reboot(POWER_OFF)


if __name__ == "__main__":
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    main(Path(sys.argv[1]))
