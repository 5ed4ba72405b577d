"""Trees of sysfs like those of real machines, small: each device with the files that are read.

`dgx`, `dual_socket` and the rest are built after what such machines are known to look like;
`this_machine` of the tests is real.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

GIB_KB = 1 << 20


class Tree:
    """Writes a machine below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys"

    def write(self, path: str, text: str) -> None:
        file = self.sys / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def link(self, path: str, target: Path) -> None:
        link = self.sys / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def numa(self, distances: Sequence[Sequence[int]], cpus: Sequence[str]) -> None:
        for node, row in enumerate(distances):
            folder = f"devices/system/node/node{node}"
            self.write(f"{folder}/distance", " ".join(map(str, row)))
            self.write(f"{folder}/cpulist", cpus[node])
            self.write(f"{folder}/meminfo", f"Node {node} MemTotal:       {512 * GIB_KB} kB")

    def pci(self, path: str, numa: int, *, kind: str, vendor: str) -> Path:
        """Add a device, the bridges above it included; returns its real folder."""
        folder = self.sys / "devices" / path
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{numa}\n")
        (folder / "class").write_text(f"{kind}\n")
        (folder / "vendor").write_text(f"{vendor}\n")
        self.link(f"bus/pci/devices/{folder.name}", folder)
        return folder

    def gpu(self, path: str, numa: int, *, model: str = "NVIDIA H100 80GB HBM3") -> None:
        folder = self.pci(path, numa, kind="0x030200", vendor="0x10de")
        told = self.root / "proc/driver/nvidia/gpus" / folder.name / "information"
        told.parent.mkdir(parents=True, exist_ok=True)
        uuid = f"GPU-{zlib.crc32(folder.name.encode()):08x}-0000-0000-0000-000000000000"
        told.write_text(f"Model: \t\t {model}\nIRQ:   \t\t 1\nGPU UUID: \t {uuid}\n")

    def net(self, name: str, device: Path, *, state: str = "up", speed: str = "200000") -> None:
        folder = device / "net" / name
        folder.mkdir(parents=True)
        for file, text in (("operstate", state), ("speed", speed), ("mtu", "9000")):
            (folder / file).write_text(f"{text}\n")
        (folder / "device").symlink_to(device)
        self.link(f"class/net/{name}", folder)

    def hca(
        self,
        name: str,
        path: str,
        numa: int,
        *,
        link_layer: str = "InfiniBand",
        state: str = "4: ACTIVE",
        physical: str = "5: LinkUp",
        rate: str = "400 Gb/sec (4X NDR)",
        gids: Sequence[tuple[str, str, str]] | None = None,
    ) -> Path:
        device = self.pci(path, numa, kind="0x020700", vendor="0x15b3")
        if gids is None:
            gids = [("fe80:0000:0000:0000:a088:c203:00c5:4b1a", "IB/RoCE v1", "")]
        self.ports(device / "infiniband" / name, link_layer, state, physical, rate, gids)
        (device / "infiniband" / name / "device").symlink_to(device)
        self.link(f"class/infiniband/{name}", device / "infiniband" / name)
        return device

    def ports(
        self,
        folder: Path,
        link_layer: str,
        state: str,
        physical: str,
        rate: str,
        gids: Sequence[tuple[str, str, str]],
    ) -> None:
        port = folder / "ports/1"
        for sub in ("gids", "gid_attrs/types", "gid_attrs/ndevs"):
            (port / sub).mkdir(parents=True)
        for file, text in (
            ("link_layer", link_layer),
            ("state", state),
            ("phys_state", physical),
            ("rate", rate),
        ):
            (port / file).write_text(f"{text}\n")
        for index in range(16):
            (port / f"gids/{index}").write_text(":".join(["0000"] * 8) + "\n")
        for index, (gid, kind, net) in enumerate(gids):
            (port / f"gids/{index}").write_text(f"{gid}\n")
            (port / f"gid_attrs/types/{index}").write_text(f"{kind}\n")
            (port / f"gid_attrs/ndevs/{index}").write_text(f"{net}\n")

    def soft(self, name: str, net: str, gids: Sequence[tuple[str, str, str]]) -> None:
        folder = self.sys / "devices/virtual/infiniband" / name
        rate = "2.5 Gb/sec (1X SDR)"
        self.ports(folder, "Ethernet", "4: ACTIVE", "5: LinkUp", rate, gids)
        (folder / "parent").write_text(f"{net}\n")
        self.link(f"class/infiniband/{name}", folder)


def roce(
    net: str, address: str = "0000:0000:0000:0000:0000:ffff:0a00:0001"
) -> list[tuple[str, str, str]]:
    """Return the GIDs of a RoCE port: link-local and an IPv4 address, each in two versions."""
    local = "fe80:0000:0000:0000:0ac0:ebff:fe12:3456"
    kinds = ("IB/RoCE v1", "RoCE v2")
    return [(gid, kind, net) for gid in (local, address) for kind in kinds]


def dgx(root: Path) -> Tree:
    """Eight GPUs and eight NICs: one of each below a PCI switch, four switches a socket."""
    tree = Tree(root)
    tree.numa([[10, 21], [21, 10]], ["0-55,112-167", "56-111,168-223"])
    for index in range(8):
        numa, bus = index // 4, 0x18 + index * 0x10
        above = f"pci0000:{bus - 1:02x}/0000:{bus - 1:02x}:01.0/0000:{bus:02x}:00.0"
        nic = f"{above}/0000:{bus + 1:02x}:00.0/0000:{bus + 2:02x}:00.0"
        gpu = f"{above}/0000:{bus + 1:02x}:01.0/0000:{bus + 3:02x}:00.0"
        tree.hca(f"mlx5_{index}", nic, numa)
        tree.gpu(gpu, numa)
    # For storage and logins: slower, and not below a GPU's switch.
    device = tree.hca(
        "mlx5_8",
        "pci0000:a6/0000:a6:01.0/0000:a7:00.0",
        1,
        link_layer="Ethernet",
        rate="100 Gb/sec (4X EDR)",
        gids=roce("ens6f0"),
    )
    tree.net("ens6f0", device, speed="100000")
    # The screen of the management controller, and NVSwitches, are no GPUs.
    tree.pci("pci0000:00/0000:00:1c.0/0000:02:00.0", 0, kind="0x030000", vendor="0x1a03")
    tree.pci("pci0000:00/0000:00:1d.0/0000:05:00.0", 0, kind="0x068000", vendor="0x10de")
    return tree


def dual_socket(root: Path) -> Tree:
    """Two sockets, a RoCE NIC at each."""
    tree = Tree(root)
    tree.numa([[10, 21], [21, 10]], ["0-31", "32-63"])
    for index, bus in ((0, "17"), (1, "ca")):
        device = tree.hca(
            f"mlx5_{index}",
            f"pci0000:{bus}/0000:{bus}:02.0/0000:{int(bus, 16) + 1:02x}:00.0",
            index,
            link_layer="Ethernet",
            rate="100 Gb/sec (4X EDR)",
            gids=roce(f"ens{index}np0"),
        )
        tree.net(f"ens{index}np0", device, speed="100000")
    return tree


def without_rdma(root: Path) -> Tree:
    """A virtual machine with one virtual network card."""
    tree = Tree(root)
    tree.numa([[10]], ["0-1"])
    device = tree.pci("pci0000:00/0000:00:03.0", -1, kind="0x020000", vendor="0x1af4")
    virtio = device / "virtio2"
    virtio.mkdir()
    tree.net("eth0", virtio, speed="-1")
    (tree.sys / "devices/virtual/net/lo").mkdir(parents=True)
    tree.link("class/net/lo", tree.sys / "devices/virtual/net/lo")
    return tree


def soft_roce(root: Path) -> Tree:
    """As in a test machine: two soft devices over plain network cards."""
    tree = without_rdma(root)
    for index in range(2):
        name = f"eth{index + 1}"
        device = tree.pci(
            f"pci0000:00/0000:00:0{4 + index}.0", -1, kind="0x020000", vendor="0x8086"
        )
        tree.net(name, device, speed="1000")
        tree.soft(f"rxe{index}", name, roce(name)[1:2] + roce(name)[3:])
    return tree


def broken(root: Path) -> Tree:
    """What goes wrong: ports down, addresses missing, files that cannot be read, dead links."""
    tree = Tree(root)
    tree.numa([[10, 32], [32, 10]], ["0-15", "16-31"])
    # Memory that may be plugged in: no CPU, nothing there.
    tree.write("devices/system/node/node2/cpulist", "")
    tree.write("devices/system/node/node2/meminfo", "Node 2 MemTotal:       0 kB")
    down = tree.hca(
        "mlx5_0",
        "pci0000:16/0000:16:02.0/0000:17:00.0",
        0,
        link_layer="Ethernet",
        state="1: DOWN",
        physical="3: Disabled",
        gids=roce("ens1"),
    )
    tree.net("ens1", down, state="down", speed="-1")
    bare = tree.hca(
        "mlx5_1",
        "pci0000:16/0000:16:04.0/0000:18:00.0",
        0,
        link_layer="Ethernet",
        gids=[],
    )
    tree.net("ens2", bare)
    tree.hca("mlx5_2", "pci0000:64/0000:64:02.0/0000:65:00.0", 1, state="2: INIT")
    old = tree.hca(
        "mlx5_3",
        "pci0000:64/0000:64:04.0/0000:66:00.0",
        1,
        link_layer="Ethernet",
        gids=[("0000:0000:0000:0000:0000:ffff:0a00:0002", "IB/RoCE v1", "ens4")],
    )
    tree.net("ens4", old)
    local = tree.hca(
        "mlx5_10",
        "pci0000:64/0000:64:06.0/0000:67:00.0",
        -1,
        link_layer="Ethernet",
        gids=roce("ens5")[:2],
    )
    tree.net("ens5", local)
    tree.gpu("pci0000:16/0000:16:06.0/0000:19:00.0", 0)
    # A driver that failed half way: no ports, no files; and a link to nowhere.
    (tree.sys / "class/infiniband/mlx4_0").mkdir()
    (tree.sys / "class/infiniband/mlx5_9").symlink_to(tree.sys / "devices/gone")
    tree.write("class/net/odd/operstate", "up")
    # A GPU that the driver does not have, such as one given to a virtual machine.
    tree.pci("pci0000:64/0000:64:08.0/0000:68:00.0", 1, kind="0x030200", vendor="0x10de")
    (tree.sys / "bus/pci/devices/0000:ff:00.0").symlink_to(tree.sys / "devices/gone")
    return tree
