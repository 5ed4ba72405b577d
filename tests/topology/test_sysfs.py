"""What is read of machines, from trees like theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_hicache.topology import detect, read_machine
from mooncake_hicache.topology.nvml import gpus_of_process, gpus_with_nvml
from mooncake_hicache.topology.sysfs import GIDS_MAX
from tests.topology import machines


def test_a_dgx_is_seen_whole(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    machine = read_machine(tmp_path)
    assert [node.node for node in machine.numa] == [0, 1]
    assert machine.numa[1].cpus == "56-111,168-223"
    assert machine.numa[1].memory_bytes == 512 << 30
    assert machine.numa[0].distances == (10, 21)
    assert [device.name for device in machine.rdma] == [f"mlx5_{n}" for n in range(9)]
    assert [gpu.index for gpu in machine.gpus] == list(range(8)), "no screen, no NVSwitch"
    assert [gpu.place.numa for gpu in machine.gpus] == [0] * 4 + [1] * 4
    assert machine.gpus[0].model == "NVIDIA H100 80GB HBM3"
    assert machine.gpus[0].place.pci == "0000:1b:00.0"
    port = machine.rdma[0].ports[0]
    assert (port.state, port.physical, port.link_layer) == ("ACTIVE", "LinkUp", "InfiniBand")
    assert port.rate_gbps == 400
    assert len(port.gids) == 1, "empty entries are none"
    storage = machine.rdma[8]
    assert storage.nets == ("ens6f0",)
    assert [gid.type for gid in storage.ports[0].gids].count("RoCE v2") == 2
    assert storage.ports[0].gids[3].net == "ens6f0"
    assert storage.ports[0].gids[3].index == 3
    assert [net.name for net in machine.nets] == ["ens6f0"]
    assert (machine.nets[0].rate_gbps, machine.nets[0].mtu) == (100, 9000)


def test_a_virtual_card_has_the_place_of_what_carries_it(tmp_path: Path) -> None:
    tree = machines.without_rdma(tmp_path)
    (tree.sys / "devices/pci0000:00/0000:00:03.0/numa_node").write_text("0\n")
    machine = read_machine(tmp_path)
    assert machine.rdma == ()
    assert machine.gpus == ()
    assert [net.name for net in machine.nets] == ["eth0"], "lo has no hardware"
    assert machine.nets[0].place.numa == 0
    assert machine.nets[0].place.pci == "0000:00:03.0"
    assert machine.nets[0].rate_gbps == 0


def test_soft_devices_are_known_by_their_network_device(tmp_path: Path) -> None:
    machines.soft_roce(tmp_path)
    first, second = read_machine(tmp_path).rdma
    assert (first.name, first.is_soft, first.nets) == ("rxe0", True, ("eth1",))
    assert (second.name, second.nets) == ("rxe1", ("eth2",))
    assert first.ports[0].rate_gbps == 1, "its own figure is made up"
    assert first.place.pci == "0000:00:04.0"


def test_what_is_broken_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    machines.broken(tmp_path)
    machine = read_machine(tmp_path)
    assert [node.node for node in machine.numa] == [0, 1]
    names = [device.name for device in machine.rdma]
    assert names == ["mlx4_0", "mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3", "mlx5_9", "mlx5_10"]
    by_name = {device.name: device for device in machine.rdma}
    assert by_name["mlx5_0"].ports[0].state == "DOWN"
    assert by_name["mlx5_1"].ports[0].gids == ()
    assert by_name["mlx5_9"].ports == ()
    assert by_name["mlx5_10"].place.numa == -1
    assert [gpu.index for gpu in machine.gpus] == [0], "the driver does not have the other one"


def test_files_of_garbage_are_no_figures(tmp_path: Path) -> None:
    tree = machines.dual_socket(tmp_path)
    port = tree.sys / "class/infiniband/mlx5_0/ports/1"
    (port / "rate").write_bytes(b"\xff\xfe fast\n")
    (port / "state").write_bytes(b"")
    (port / "gids/5").unlink()
    (port / "gids/5").mkdir()
    (tree.sys / "class/net/ens0np0/mtu").write_text("9" * 40)
    (tree.sys / "class/net/ens0np0/speed").write_text("4294967295\n")
    (tree.sys / "devices/system/node/node0/distance").write_text("10 x\n")
    (tree.sys / "devices/system/node/node1/meminfo").write_text("\n")
    machine = read_machine(tmp_path)
    assert (machine.rdma[0].ports[0].rate_gbps, machine.rdma[0].ports[0].state) == (0, "")
    assert len(machine.rdma[0].ports[0].gids) == 4
    assert (machine.nets[0].mtu, machine.nets[0].rate_gbps) == (0, 0)
    assert machine.numa[0].distances == (10,)
    assert machine.numa[1].memory_bytes == 0


def test_a_table_of_many_addresses_is_bounded(tmp_path: Path) -> None:
    tree = machines.dual_socket(tmp_path)
    for index in range(1000):
        (tree.sys / f"class/infiniband/mlx5_0/ports/1/gids/{index}").write_text("fe80::1\n")
    assert len(read_machine(tmp_path).rdma[0].ports[0].gids) == GIDS_MAX


def test_a_machine_that_hides_everything_has_one_numa_node(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert [node.node for node in machine.numa] == [0]
    assert (machine.rdma, machine.nets, machine.gpus) == ((), (), ())


def test_gpus_are_in_the_order_of_their_hexadecimal_addresses(tmp_path: Path) -> None:
    tree = machines.Tree(tmp_path)
    for bus in ("4e", "47", "d1", "07", "90"):
        tree.gpu(f"pci0000:{bus}/0000:{bus}:00.0", 0)
    found = [gpu.place.pci for gpu in read_machine(tmp_path).gpus]
    assert found == [f"0000:{bus}:00.0" for bus in ("07", "47", "4e", "90", "d1")]


def test_with_one_numa_node_everything_is_near_it(tmp_path: Path) -> None:
    machines.soft_roce(tmp_path)
    assert {device.place.numa for device in read_machine(tmp_path).rdma} == {0}


def test_this_machine_is_read() -> None:
    machine = detect()
    assert machine.numa
    assert all(node.cpus or node.memory_bytes for node in machine.numa)
    expected = Path("/sys/class/infiniband")
    names = {entry.name for entry in expected.iterdir()} if expected.is_dir() else set()
    assert {device.name for device in machine.rdma} == names


# ---- which GPUs are this process's


def test_nvml_says_which_gpus_are_ours_and_their_order(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    gpus = read_machine(tmp_path).gpus
    told = [(gpus[5].place.pci, "GPU-b", "H100"), (gpus[1].place.pci, "GPU-a", "H100")]
    ours = gpus_with_nvml(gpus, told)
    assert [(gpu.index, gpu.place, gpu.uuid) for gpu in ours] == [
        (0, gpus[5].place, "GPU-b"),
        (1, gpus[1].place, "GPU-a"),
    ]
    assert gpus_with_nvml(gpus, None) == gpus
    assert gpus_with_nvml(gpus, [("0000:ee:00.0", "GPU-x", "")]) == ()


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("3", [3]),
        ("6, 2", [6, 2]),
        ("1,9,2", [1]),
        ("1,-1,2", [1]),
        ("", []),
        ("NoDevFiles", []),
        ("2,2", [2]),
    ],
)
def test_cuda_visible_devices_numbers_them_anew(
    tmp_path: Path, visible: str | None, indices: list[int]
) -> None:
    machines.dgx(tmp_path)
    gpus = read_machine(tmp_path).gpus
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    ours = gpus_of_process(gpus, environment)
    assert [gpu.index for gpu in ours] == list(range(len(indices)))
    assert [gpu.place for gpu in ours] == [gpus[index].place for index in indices]


def test_cuda_visible_devices_by_uuid(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    gpus = read_machine(tmp_path).gpus
    ours = gpus_of_process(gpus, {"CUDA_VISIBLE_DEVICES": gpus[4].uuid})
    assert [gpu.place for gpu in ours] == [gpus[4].place]
    assert gpus_of_process(gpus, {"CUDA_VISIBLE_DEVICES": "GPU-"}) == (), "it may be any"
    assert gpus_of_process(gpus, {"CUDA_VISIBLE_DEVICES": "MIG-" + gpus[0].uuid}) == ()
