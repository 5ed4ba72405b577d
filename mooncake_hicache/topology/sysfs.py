"""What sysfs says of a machine: NUMA nodes, RDMA and network devices, GPUs, and where they sit.

Reads only, starts nothing, and never raises over what a kernel, a container or a broken driver
left out: what cannot be read is absent, and `findings` says what that means. What it is not: a
judgement; `distance` makes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Gid",
    "Gpu",
    "Machine",
    "NetDevice",
    "NumaNode",
    "Place",
    "Port",
    "RdmaDevice",
    "read_machine",
    "read_text",
]

GIDS_MAX = 512
"""Entries of a GID table that are looked at: virtual functions may come with thousands."""

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PCI_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_NVIDIA = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers.
_NUMA_NOT_KNOWN = -1


@dataclass(frozen=True)
class Place:
    """Where a device sits."""

    path: tuple[str, ...]
    """From the root complex down to the device: `pci0000:16`, `0000:16:01.0`, ... Empty for a
    device that is not on PCI."""
    numa: int
    """Its NUMA node; -1 if the kernel does not know."""

    @property
    def pci(self) -> str:
        """The device's own PCI address; empty if it has none."""
        return self.path[-1] if len(self.path) > 1 else ""


@dataclass(frozen=True)
class NumaNode:
    """A NUMA node with memory or CPUs."""

    node: int
    cpus: str
    memory_bytes: int
    distances: tuple[int, ...]
    """To node 0, 1, ... as the firmware tells: 10 is local."""


@dataclass(frozen=True)
class Gid:
    """One address of an RDMA port."""

    index: int
    gid: str
    type: str
    """`RoCE v2`, `IB/RoCE v1`; empty if the kernel does not say."""
    net: str
    """The network device that it belongs to, if any."""


@dataclass(frozen=True)
class Port:
    """A port of an RDMA device."""

    port: int
    state: str
    """`ACTIVE`, `DOWN`, `INIT`, ...; empty if it cannot be read."""
    physical: str
    link_layer: str
    """`InfiniBand` or `Ethernet`."""
    rate_gbps: float
    """0 if it is not known."""
    gids: tuple[Gid, ...]


@dataclass(frozen=True)
class RdmaDevice:
    """A device that verbs can use."""

    name: str
    place: Place
    ports: tuple[Port, ...]
    nets: tuple[str, ...]
    """Its network devices."""
    is_soft: bool
    """Soft-RoCE: the CPU does the work, over the network device in `nets`."""


@dataclass(frozen=True)
class NetDevice:
    """A network device with hardware behind it."""

    name: str
    place: Place
    state: str
    rate_gbps: float
    mtu: int


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA numbers it."""

    index: int
    place: Place
    model: str
    uuid: str


@dataclass(frozen=True)
class Machine:
    """All of it."""

    numa: tuple[NumaNode, ...]
    rdma: tuple[RdmaDevice, ...]
    nets: tuple[NetDevice, ...]
    gpus: tuple[Gpu, ...]


def read_machine(root: Path = Path("/")) -> Machine:
    """Read what a machine has.

    Args:
        root: The folder that holds `sys` and `proc`; another one in tests, or to look at a copy of
            another machine's.
    """
    sys = root / "sys"
    numa = tuple(_numa_nodes(sys))
    # With one node the kernel often does not say which, and there is no doubt.
    reader = _Reader(root, numa[0].node if len(numa) == 1 else _NUMA_NOT_KNOWN)
    return Machine(
        numa, tuple(reader.rdma_devices()), tuple(reader.net_devices()), tuple(reader.gpus())
    )


# ---- reading


def read_text(path: Path) -> str:
    """Return a file of sysfs without white space around it; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_number(path: Path, otherwise: int) -> int:
    text = read_text(path)
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else otherwise


def _entries(folder: Path, pattern: str = ".+") -> list[Path]:
    """Return what a folder holds, in the order that people count in."""
    try:
        found = [entry for entry in folder.iterdir() if re.fullmatch(pattern, entry.name)]
    except OSError:
        return []
    return sorted(found, key=lambda entry: _natural(entry.name))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _numa_nodes(sys: Path) -> Iterator[NumaNode]:
    found = False
    for folder in _entries(sys / "devices/system/node", r"node\d+"):
        cpus = read_text(folder / "cpulist")
        memory = re.search(r"MemTotal:\s+(\d+) kB", read_text(folder / "meminfo"))
        memory_bytes = int(memory.group(1)) * 1024 if memory else 0
        if not cpus and not memory_bytes:
            continue  # A place for memory that may be plugged in.
        found = True
        distances = read_text(folder / "distance").split()
        yield NumaNode(
            int(folder.name[4:]),
            cpus,
            memory_bytes,
            tuple(int(one) for one in distances if one.isdigit()),
        )
    if not found:
        yield NumaNode(0, read_text(sys / "devices/system/cpu/online"), 0, (10,))


def _rate_gbps(text: str) -> float:
    """Return the rate of `200 Gb/sec (4X HDR)`; 0 if it says none."""
    match = re.match(r"([0-9]+(?:\.[0-9]+)?)\s*Gb/sec", text)
    return float(match.group(1)) if match else 0.0


def _net_rate_gbps(folder: Path) -> float:
    # A link that is down has no speed, and some drivers say -1 or 2^32 - 1.
    speed = _read_number(folder / "speed", 0)
    return speed / 1000 if 0 < speed < (1 << 31) else 0.0


def _gids(folder: Path) -> Iterator[Gid]:
    for entry in _entries(folder / "gids", r"\d+")[:GIDS_MAX]:
        gid = read_text(entry)
        if not re.search("[1-9a-f]", gid):
            continue
        kind = read_text(folder / "gid_attrs/types" / entry.name)
        net = read_text(folder / "gid_attrs/ndevs" / entry.name)
        yield Gid(int(entry.name), gid, kind, net)


def _ports(device: Path) -> Iterator[Port]:
    for folder in _entries(device / "ports", r"\d+"):
        yield Port(
            port=int(folder.name),
            state=read_text(folder / "state").split(":")[-1].strip(),
            physical=read_text(folder / "phys_state").split(":")[-1].strip(),
            link_layer=read_text(folder / "link_layer"),
            rate_gbps=_rate_gbps(read_text(folder / "rate")),
            gids=tuple(_gids(folder)),
        )


class _Reader:
    """Reads devices; one without a NUMA node is of the node `otherwise`."""

    def __init__(self, root: Path, otherwise: int) -> None:
        self._root = root
        self._sys = root / "sys"
        self._otherwise = otherwise

    def rdma_devices(self) -> Iterator[RdmaDevice]:
        for folder in _entries(self._sys / "class/infiniband"):
            parent = read_text(folder / "parent")  # Of soft devices: their network device.
            ports = tuple(_ports(folder))
            if parent:
                place = self._place(self._sys / "class/net" / parent / "device")
                rate = _net_rate_gbps(self._sys / "class/net" / parent)
                # What rxe says of its rate is made up.
                ports = tuple(
                    Port(p.port, p.state, p.physical, p.link_layer, rate, p.gids) for p in ports
                )
                yield RdmaDevice(folder.name, place, ports, (parent,), True)
                continue
            nets = tuple(entry.name for entry in _entries(folder / "device/net"))
            yield RdmaDevice(folder.name, self._place(folder / "device"), ports, nets, False)

    def net_devices(self) -> Iterator[NetDevice]:
        for folder in _entries(self._sys / "class/net"):
            if not (folder / "device").exists():
                continue  # lo, bridges, tunnels: whatever they send goes through another one.
            yield NetDevice(
                name=folder.name,
                place=self._place(folder / "device"),
                state=read_text(folder / "operstate"),
                rate_gbps=_net_rate_gbps(folder),
                mtu=_read_number(folder / "mtu", 0),
            )

    def gpus(self) -> Iterator[Gpu]:
        """Yield NVIDIA's GPUs by PCI address, which is the order of NVML.

        CUDA's own order is the same among equal GPUs, and always with CUDA_DEVICE_ORDER=PCI_BUS_ID.
        """
        index = 0
        driver = self._root / "proc/driver/nvidia/gpus"
        # Not as people count: the addresses are hexadecimal.
        folders = sorted(
            _entries(self._root / "sys/bus/pci/devices"), key=lambda one: (len(one.name), one.name)
        )
        for folder in folders:
            kind = read_text(folder / "class")
            if read_text(folder / "vendor") != _NVIDIA or not kind.startswith(_DISPLAY_CLASSES):
                continue
            told = read_text(driver / folder.name / "information")
            if driver.is_dir() and not told:
                continue  # Bound to another driver, or kept from this container.
            model = re.search(r"^Model:\s*(.+)$", told, re.MULTILINE)
            uuid = re.search(r"^GPU UUID:\s*(\S+)$", told, re.MULTILINE)
            yield Gpu(
                index,
                self._place(folder),
                model.group(1) if model else "",
                uuid.group(1) if uuid else "",
            )
            index += 1

    def _place(self, device: Path) -> Place:
        """Return where the device behind a link sits."""
        if not device.exists():
            return Place((), self._otherwise)
        real = Path(os.path.realpath(device))
        path = tuple(
            part for part in real.parts if _PCI_ADDRESS.fullmatch(part) or _PCI_ROOT.fullmatch(part)
        )
        # Virtual functions of buses above PCI (virtio) have no node; the PCI device above them has.
        for folder in (real, *real.parents):
            if (folder / "numa_node").exists():
                numa = _read_number(folder / "numa_node", _NUMA_NOT_KNOWN)
                return Place(path, numa if numa >= 0 else self._otherwise)
            if _PCI_ROOT.fullmatch(folder.name):
                break
        return Place(path, self._otherwise)
