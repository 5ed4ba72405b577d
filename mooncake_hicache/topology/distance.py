"""From where things sit to what using them costs.

    distance   GPU and device                       memory of a NUMA node and device
    switch     a PCI switch or root port above both  -
    host       one root complex                      -
    node       one NUMA node                         one NUMA node
    system     different NUMA nodes                  different NUMA nodes
    unknown    the firmware does not say             the firmware does not say

The costs are first guesses, in proportion to the rate of the link and with what each distance is
known to add; the engine measures and corrects them. A device is preferred if it costs about as
little as the best one; so a slow NIC beside fast ones is not, however near it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from mooncake_hicache.topology.model import Cost, Location, Topology
from mooncake_hicache.topology.sysfs import Gpu, Machine, NumaNode, Place, RdmaDevice

__all__ = [
    "Distance",
    "device_rate_gbps",
    "gpu_distance",
    "is_usable",
    "memory_distance",
    "topology_of",
]

Distance = Literal["switch", "host", "node", "system", "unknown"]

SLICE_SIZE_BYTES = 1 << 20
"""At this size devices are compared: that of the slices that large transfers are cut into."""
PREFERRED_SHARE_MAX = 1.2
"""A device that costs up to so many times what the best one does is preferred as well."""

RATE_NOT_KNOWN_GBPS = 10.0
HARDWARE_FIXED_NS = 2000.0
SOFT_FIXED_NS = 20_000.0  # System calls and interrupts at both ends.

# What a distance adds before the first byte, and the part of the rate that is left.
_STEPS: Mapping[Distance, tuple[float, float]] = {
    "switch": (0.0, 1.0),
    "host": (200.0, 0.8),
    "node": (300.0, 0.75),
    "system": (1000.0, 0.5),
    "unknown": (300.0, 0.75),
}
NUMA_STEP_NS = 100.0  # For each 10 of the firmware's distance beyond local.
NUMA_LOCAL = 10
NUMA_REMOTE = 20


def gpu_distance(gpu: Place, device: Place) -> Distance:
    """Return how far a device is from a GPU."""
    common = 0
    for one, other in zip(gpu.path, device.path, strict=False):
        if one != other:
            break
        common += 1
    if common >= 2:
        return "switch"
    if common == 1:
        return "host"
    if gpu.numa < 0 or device.numa < 0:
        return "unknown"
    return "node" if gpu.numa == device.numa else "system"


def memory_distance(node: NumaNode, device: Place) -> Distance:
    """Return how far a device is from a NUMA node's memory."""
    if device.numa < 0:
        return "unknown"
    return "node" if device.numa == node.node else "system"


def device_rate_gbps(device: RdmaDevice) -> float:
    """Return what its ports carry together, those that are down only if all are; 0 if that is not
    known."""
    active = [port.rate_gbps for port in device.ports if port.state == "ACTIVE"]
    return sum(active or [port.rate_gbps for port in device.ports])


def is_usable(device: RdmaDevice) -> bool:
    """Return whether a connection can be made with it: a port that is up and has an address."""
    return any(port.state == "ACTIVE" and port.gids for port in device.ports)


def _cost(device: RdmaDevice, added_ns: float, rate_left: float) -> Cost:
    rate = device_rate_gbps(device) or RATE_NOT_KNOWN_GBPS
    base = SOFT_FIXED_NS if device.is_soft else HARDWARE_FIXED_NS
    # Eight bits a byte over Gb/s is ns a byte. Rounded, so that the JSON is for people too.
    return Cost(base + added_ns, round(8 / (rate * rate_left), 6))


def _memory_cost(node: NumaNode, device: RdmaDevice) -> Cost:
    if memory_distance(node, device.place) != "system":
        return _cost(
            device, 0.0, 1.0
        )  # Not known: then it must not look worse than those that are.
    told = node.distances[device.place.numa : device.place.numa + 1]
    numa = max(NUMA_LOCAL, told[0] if told else NUMA_REMOTE)
    beyond = (numa - NUMA_LOCAL) / 10
    # A device keeps less of its rate the farther the memory is: at 21, the usual figure between
    # sockets, about three quarters.
    return _cost(device, NUMA_STEP_NS * beyond, 1 / (1 + 0.3 * beyond))


def _gpu_cost(gpu: Gpu, device: RdmaDevice) -> Cost:
    added_ns, rate_left = _STEPS[gpu_distance(gpu.place, device.place)]
    return _cost(device, added_ns, rate_left)


def _location(costs: Mapping[str, Cost], usable: Iterable[str]) -> Location:
    ranked = sorted(usable, key=lambda name: costs[name].of(SLICE_SIZE_BYTES))
    if not ranked:
        return Location((), (), costs)
    limit = costs[ranked[0]].of(SLICE_SIZE_BYTES) * PREFERRED_SHARE_MAX
    preferred = [name for name in ranked if costs[name].of(SLICE_SIZE_BYTES) <= limit]
    return Location(tuple(preferred), tuple(ranked[len(preferred) :]), costs)


def topology_of(machine: Machine) -> Topology:
    """Return the topology of a machine: every NUMA node with memory and every GPU.

    Devices that are of no use now (port down, no address) have costs and are in no list: they may
    come back.
    """
    usable = [device.name for device in machine.rdma if is_usable(device)]
    locations = {}
    for node in machine.numa:
        costs = {device.name: _memory_cost(node, device) for device in machine.rdma}
        locations[f"cpu:{node.node}"] = _location(costs, usable)
    for gpu in machine.gpus:
        costs = {device.name: _gpu_cost(gpu, device) for device in machine.rdma}
        locations[f"cuda:{gpu.index}"] = _location(costs, usable)
    return Topology(locations)
