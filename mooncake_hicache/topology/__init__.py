"""Which network device is near to which memory: read from sysfs, or from a file somebody wrote.

machine = read_machine()               # what there is
topology = topology_of(machine)        # what each device costs for each place of memory
topology.cost("cuda:3", "mlx5_1")      # Cost(fixed_ns=2000.0, ns_per_byte=0.02)
"""

from __future__ import annotations

import os
from pathlib import Path

from mooncake_hicache.topology.distance import topology_of
from mooncake_hicache.topology.findings import Finding, compare, examine
from mooncake_hicache.topology.model import Cost, Location, Topology, parse_topology
from mooncake_hicache.topology.nvml import gpus_of_nvml, gpus_of_process, gpus_with_nvml
from mooncake_hicache.topology.sysfs import Machine, read_machine

__all__ = [
    "Cost",
    "Finding",
    "Location",
    "Machine",
    "Topology",
    "compare",
    "detect",
    "examine",
    "parse_topology",
    "read_machine",
    "topology_of",
]


def detect(root: Path = Path("/")) -> Machine:
    """Read this machine as this process may use it, GPUs numbered as CUDA numbers them here.

    Args:
        root: The folder that holds `sys` and `proc`. With another one only that is read: neither
            NVML nor the environment knows of a machine that is not this one.
    """
    machine = read_machine(root)
    if root != Path("/"):
        return machine
    gpus = gpus_of_process(gpus_with_nvml(machine.gpus, gpus_of_nvml()), os.environ)
    return Machine(machine.numa, machine.rdma, machine.nets, gpus)
