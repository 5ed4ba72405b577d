"""Runs one command in a throw-away guest kernel that has soft-RoCE devices.

    python -m tests.rdma.guest --devices 4 -- ibv_devinfo

Verbs are real in there: rdma_rxe carries them over Ethernet between virtual interfaces. It is
User-Mode Linux (kernel.py), an ordinary process of this user: no KVM, no root. It sees the host's
root; the working folder is read and written for real, everything else into memory. Output and exit
status are the command's; 124: the time was up; 125: the guest failed, and said why.

It has one CPU, so tests in it wait for events and do not spin.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.rdma import kernel

INIT = Path(__file__).with_name("init.py")
TIMED_OUT, FAILED = 124, 125
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")


@dataclass
class Outcome:
    """What became of a command."""

    status: int
    output: str
    boot_s: float
    """Until the command began, in the guest's time."""


def _memory_folder(size_mib: int) -> str:
    """Return a folder for the guest's memory: shared memory if there is enough of it."""
    shared = Path("/dev/shm")
    has_room = shared.is_dir() and shutil.disk_usage(shared).free > (size_mib + 64) << 20
    return str(shared) if has_room else tempfile.gettempdir()


def _command_line(control: Path, memory_mib: int, console: tuple[int, int]) -> list[str]:
    # In a PID namespace of its own, so that nothing of it outlives us; without root it needs a user
    # namespace as well.
    line = ["unshare", "--pid", "--fork", "--kill-child=KILL"]
    if os.geteuid() != 0:
        line += ["--user", "--map-root-user"]
    # Its first process must not be PID 1, which a kernel that aborts could not end.
    line += ["sh", "-c", '"$@"; exit $?', "sh", str(kernel.ensure()), f"mem={memory_mib}M"]
    line += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={control / 'init'}"]
    line += ["con=null", f"con0=fd:{console[0]},fd:{console[1]}", "ssl=null"]
    return [*line, "quiet", "loglevel=5", "panic=1"]


def _write_plan(
    control: Path, command: list[str], devices: int, folders: list[Path], extra: dict[str, str]
) -> None:
    # The interpreter behind a venv's link: before anything is mounted, only that is sure to start.
    python = Path(sys.executable).resolve()
    init = control / "init"
    init.write_text(f"#!/bin/sh\nexec {python} -I {INIT} {control}\n")
    init.chmod(0o755)
    mhz = re.search(r"cpu MHz\s*: (\S+)", Path("/proc/cpuinfo").read_text())
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"PYTHONUNBUFFERED": "1", "HICACHE_GUEST": "1", **extra}
    environment["PATH"] += ":/usr/sbin:/sbin"
    plan = {
        "command": command,
        "devices": devices,
        "folder": str(folders[0]),
        "shared": [str(folder) for folder in (*folders, control)],
        "environment": environment,
        "cpu_mhz": mhz.group(1) if mhz else "",
    }
    (control / "plan.json").write_text(json.dumps(plan))


def _drain(pipe: int, target: Path) -> threading.Thread:
    """Keep what comes over a pipe, until it ends."""

    def work() -> None:
        with target.open("wb", buffering=0) as file, open(pipe, "rb", buffering=0) as source:
            while piece := source.read(65536):
                file.write(piece)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def run(
    command: list[str],
    *,
    devices: int = 2,
    timeout_s: float = 300,
    memory_mib: int = 2048,
    folder: Path | None = None,
    also: tuple[Path, ...] = (),
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Run `command` in a guest.

    `folder` (default: the current one) is shared with it, and its current folder; `also` are shared
    too, which what lies under /tmp needs to be seen at all.
    """
    with tempfile.TemporaryDirectory(prefix="hicache-guest-") as name:
        control = Path(name)
        folders = [path.resolve() for path in (folder or Path.cwd(), *also)]
        _write_plan(control, command, devices, folders, environment or {})
        # The kernel polls a console's input: a pipe on which nothing comes.
        quiet, quiet_end = os.pipe()
        output, output_end = os.pipe()
        drain = _drain(output, control / "console")
        process = subprocess.Popen(
            _command_line(control, memory_mib, (quiet, output_end)),
            env={
                "PATH": os.environ["PATH"],
                "HOME": name,
                "TMPDIR": _memory_folder(memory_mib),
            },
            pass_fds=(quiet, output_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(output_end)
        os.close(quiet)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            (control / "late").touch()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.close(quiet_end)
        drain.join(5)
        return _outcome(control, timeout_s)


def _outcome(control: Path, timeout_s: float) -> Outcome:
    out = control / "out"
    text = out.read_text(errors="replace") if out.exists() else ""
    ready = control / "ready"
    boot_s = float(ready.read_text().split()[0]) if ready.exists() else 0.0
    if (control / "status").exists():
        status = int((control / "status").read_text())
        if status != FAILED:
            return Outcome(status, text, boot_s)
    is_late = (control / "late").exists()
    console = (control / "console").read_text(errors="replace")[-4000:]
    why = f"the time of {timeout_s:g} s was up" if is_late else "the guest failed"
    return Outcome(
        TIMED_OUT if is_late else FAILED, f"{text}\n[guest] {why}; its console:\n{console}", boot_s
    )


def main() -> int:
    """Run a command from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    begin = time.monotonic()
    outcome = run(
        arguments.command,
        devices=arguments.devices,
        timeout_s=arguments.timeout,
        memory_mib=arguments.memory,
        environment=dict(item.split("=", 1) for item in arguments.env),
    )
    print(outcome.output, end="")
    took_s = time.monotonic() - begin
    print(f"[guest] {took_s:.1f} s, ready after {outcome.boot_s:.1f} s", file=sys.stderr)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
