"""What is wrong with a machine's devices or with a topology that somebody wrote, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mooncake_hicache.topology.distance import (
    PREFERRED_SHARE_MAX,
    SLICE_SIZE_BYTES,
    gpu_distance,
    is_usable,
    topology_of,
)
from mooncake_hicache.topology.model import Topology
from mooncake_hicache.topology.sysfs import Machine, Port, RdmaDevice

__all__ = ["Finding", "compare", "examine"]

_ROCE_V2 = "RoCE v2"


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing."""

    about: str
    """The device or the location."""
    verdict: Literal["note", "warning", "error"]
    """note: nothing to do. warning: works, worse than it could. error: does not work."""
    text: str
    remedy: str = ""


def examine(machine: Machine) -> list[Finding]:
    """Return what is wrong with the devices of a machine."""
    if not machine.rdma:
        return [
            Finding(
                "RDMA",
                "note",
                "there is no RDMA device: transfers go over TCP and shared memory",
                ""
                if not machine.nets
                else "where a NIC can do RDMA, load its driver (`rdma link`)",
            )
        ]
    found: list[Finding] = []
    for device in machine.rdma:
        found += _of_device(device)
    if not any(is_usable(device) for device in machine.rdma):
        found.append(
            Finding(
                "RDMA", "error", "no RDMA device can be used: transfers go over TCP", "see above"
            )
        )
    found += _of_places(machine)
    return found


def _of_device(device: RdmaDevice) -> Iterator[Finding]:
    if not device.ports:
        yield Finding(
            device.name,
            "error",
            "no port of it can be seen",
            "look at `dmesg` for its driver; in a container, mount /sys of the host read-only",
        )
    for port in device.ports:
        yield from _of_port(device, port, alone=len(device.ports) == 1)
    if device.is_soft:
        yield Finding(
            device.name,
            "note",
            f"soft-RoCE over {', '.join(device.nets)}: verbs for testing, slower than TCP",
        )


def _of_port(device: RdmaDevice, port: Port, *, alone: bool) -> Iterator[Finding]:
    name = device.name if alone else f"{device.name} port {port.port}"
    nets = ", ".join(device.nets) or "its network device"
    is_ethernet = port.link_layer == "Ethernet"
    if port.state != "ACTIVE":
        physical = f", physically {port.physical}" if port.physical else ""
        if is_ethernet:
            remedy = f"`ip link set {device.nets[0] if device.nets else 'DEVICE'} up`; "
            remedy += "then check cable and switch port"
        elif port.state in ("INIT", "ARMED"):
            remedy = "the fabric has no subnet manager that knows this port: start opensm"
        else:
            remedy = "check cable and switch port (`ibstat`)"
        yield Finding(
            name, "warning", f"its port is {port.state or 'unreadable'}{physical}", remedy
        )
        return
    if not port.gids:
        yield Finding(
            name,
            "error",
            "its port is up and has no GID: no connection can be made",
            f"give {nets} an address (`ip addr add ADDRESS/PREFIX dev {nets}`)"
            if is_ethernet
            else "the port has no identity in its fabric yet: see `ibstat`",
        )
    elif is_ethernet and not any(gid.type == _ROCE_V2 for gid in port.gids):
        if any(gid.type for gid in port.gids):
            yield Finding(
                name,
                "warning",
                "it has only RoCE v1 addresses, which do not leave the Ethernet segment",
                f"turn RoCE v2 on for it, and give {nets} an IP address",
            )
    elif is_ethernet and not any(_is_routable(gid.gid) for gid in port.gids):
        yield Finding(
            name,
            "warning",
            "it has link-local addresses only, which do not reach beyond a router",
            f"give {nets} an IP address",
        )


def _is_routable(gid: str) -> bool:
    return not gid.lower().startswith("fe80:")


def _of_places(machine: Machine) -> Iterator[Finding]:
    usable = [device for device in machine.rdma if is_usable(device)]
    if len(machine.numa) > 1:
        for device in usable:
            if device.place.numa < 0:
                yield Finding(
                    device.name,
                    "warning",
                    "the firmware does not say which NUMA node it is near to",
                    "update it, or say it yourself with a topology file",
                )
    for gpu in machine.gpus:
        distances = {gpu_distance(gpu.place, device.place) for device in usable}
        if distances and distances <= {"system"}:
            yield Finding(
                f"cuda:{gpu.index}",
                "warning",
                "every RDMA device that works is on another socket: all it sends crosses between "
                "the CPUs",
                "move a NIC to a slot of this GPU's socket, or bring up the one that is there",
            )
    for node in machine.numa:
        near = [device for device in usable if device.place.numa in (node.node, -1)]
        if usable and not near and node.memory_bytes:
            names = ", ".join(device.name for device in usable)
            yield Finding(
                f"cpu:{node.node}",
                "warning",
                f"no RDMA device that works is near: {names} reach its memory across sockets",
                f"allocate what is transferred on the NUMA node of {usable[0].name} "
                f"({usable[0].place.numa}), or add a NIC here",
            )


def compare(custom: Topology, machine: Machine) -> list[Finding]:
    """Return where a topology that somebody wrote does not fit a machine."""
    detected = topology_of(machine)
    devices = {device.name: device for device in machine.rdma}
    found: list[Finding] = []
    for name in custom.devices():
        if name not in devices:
            known = ", ".join(devices) or "none"
            found.append(
                Finding(name, "error", f"this machine has no such device ({known})", "correct it")
            )
        elif not is_usable(devices[name]):
            found.append(Finding(name, "warning", "it cannot be used now", "see the devices"))
    for name, place in custom.locations.items():
        if name != "*" and name not in detected.locations:
            known = ", ".join(detected.locations)
            found.append(
                Finding(name, "warning", f"this machine has no such memory ({known})", "remove it")
            )
            continue
        if not place.preferred and not place.others:
            found.append(Finding(name, "warning", "it has no devices: TCP carries it", "name some"))
        found += _far(name, place.preferred, detected)
    for name in detected.locations:
        if custom.location(name) is None:
            found.append(
                Finding(name, "warning", "the file does not say its devices", 'add it, or "*"')
            )
    unused = [name for name in devices if name not in custom.devices()]
    if unused:
        found.append(Finding(", ".join(unused), "note", "not in the file, so not used"))
    return found


def _far(name: str, preferred: tuple[str, ...], detected: Topology) -> Iterator[Finding]:
    place = detected.locations.get(name)
    if place is None or not place.preferred:
        return
    best = place.preferred[0]
    limit = place.costs[best].of(SLICE_SIZE_BYTES) * PREFERRED_SHARE_MAX
    for device in preferred:
        cost = place.costs.get(device)
        if cost is not None and cost.of(SLICE_SIZE_BYTES) > limit:
            share = cost.of(SLICE_SIZE_BYTES) / place.costs[best].of(SLICE_SIZE_BYTES)
            found = (
                f"{device} is preferred here and should take {share:.1f} times as long as {best}"
            )
            yield Finding(name, "warning", found, f"prefer {', '.join(place.preferred)}")
