"""From machines to costs, and topologies that people write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.topology import (
    Cost,
    Location,
    Topology,
    compare,
    examine,
    parse_topology,
    read_machine,
    topology_of,
)
from mooncake_hicache.topology.model import TEXT_SIZE_MAX
from tests.topology import machines

SAMPLES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "samples.json").read_text(encoding="utf-8")
)


# ---- costs


def test_on_a_dgx_each_gpu_prefers_the_nic_of_its_switch(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    topology = topology_of(read_machine(tmp_path))
    for index in range(8):
        place = topology.locations[f"cuda:{index}"]
        assert place.preferred == (f"mlx5_{index}",)
        assert len(place.others) == 8
        assert {int(name[5:]) // 4 for name in place.others[:3]} == {index // 4}, "own socket first"
        assert place.others[-1] == "mlx5_8" or index >= 4, "the slow one last"
    assert topology.cost("cuda:0", "mlx5_0") == Cost(2000.0, 0.02)


def test_on_a_dgx_memory_prefers_the_fast_nics_of_its_socket(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    topology = topology_of(read_machine(tmp_path))
    assert topology.locations["cpu:0"].preferred == ("mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3")
    assert topology.locations["cpu:1"].preferred == ("mlx5_4", "mlx5_5", "mlx5_6", "mlx5_7")
    assert topology.locations["cpu:1"].others[-1] == "mlx5_8", "near, and slow"


def test_two_sockets_prefer_their_own_nic(tmp_path: Path) -> None:
    machines.dual_socket(tmp_path)
    topology = topology_of(read_machine(tmp_path))
    assert topology.to_original() == {
        "cpu:0": [["mlx5_0"], ["mlx5_1"]],
        "cpu:1": [["mlx5_1"], ["mlx5_0"]],
    }


def test_halves_of_one_socket_share_its_nics(tmp_path: Path) -> None:
    """Sub-NUMA clustering: the firmware says 12, and it makes next to no difference."""
    tree = machines.dual_socket(tmp_path)
    for node, row in enumerate(("10 12", "12 10")):
        (tree.sys / f"devices/system/node/node{node}/distance").write_text(row)
    topology = topology_of(read_machine(tmp_path))
    assert topology.locations["cpu:0"].preferred == ("mlx5_0", "mlx5_1")
    assert topology.locations["cpu:1"].preferred == ("mlx5_1", "mlx5_0")


def test_without_rdma_there_are_places_and_no_devices(tmp_path: Path) -> None:
    machines.without_rdma(tmp_path)
    machine = read_machine(tmp_path)
    assert topology_of(machine).to_original() == {"cpu:0": [[], []]}, "as the original has it"
    (finding,) = examine(machine)
    assert (finding.verdict, finding.about) == ("note", "RDMA")


def test_what_cannot_be_used_has_costs_and_is_in_no_list(tmp_path: Path) -> None:
    machines.broken(tmp_path)
    topology = topology_of(read_machine(tmp_path))
    place = topology.locations["cpu:0"]
    assert set(place.preferred) | set(place.others) == {"mlx5_3", "mlx5_10"}
    assert place.costs["mlx5_0"].ns_per_byte < 0.05, "of its rate when it is up"
    assert set(place.costs) == {
        *("mlx4_0", "mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3", "mlx5_9", "mlx5_10")
    }


def test_soft_roce_is_slow_and_usable(tmp_path: Path) -> None:
    machines.soft_roce(tmp_path)
    machine = read_machine(tmp_path)
    place = topology_of(machine).locations["cpu:0"]
    assert place.preferred == ("rxe0", "rxe1")
    assert place.costs["rxe0"] == Cost(20_000.0, 8.0)
    assert {finding.verdict for finding in examine(machine)} == {"note"}


# ---- findings


def test_each_fault_is_named_with_its_remedy(tmp_path: Path) -> None:
    machines.broken(tmp_path)
    found = examine(read_machine(tmp_path))
    told = {(finding.about, finding.verdict): finding for finding in found}
    assert "Disabled" in told["mlx5_0", "warning"].text
    assert "ip link set ens1 up" in told["mlx5_0", "warning"].remedy
    assert "no GID" in told["mlx5_1", "error"].text
    assert "ip addr add ADDRESS/PREFIX dev ens2" in told["mlx5_1", "error"].remedy
    assert "opensm" in told["mlx5_2", "warning"].remedy
    assert "RoCE v1" in told["mlx5_3", "warning"].text
    assert "dmesg" in told["mlx4_0", "error"].remedy
    assert "dmesg" in told["mlx5_9", "error"].remedy
    far = [finding.text for finding in found if finding.about == "mlx5_10"]
    assert len(far) == 2
    assert any("link-local" in text for text in far)
    assert any("NUMA" in text for text in far)
    assert all(finding.remedy for finding in found if finding.verdict != "note")


def test_nics_of_another_socket_are_named(tmp_path: Path) -> None:
    tree = machines.dual_socket(tmp_path)
    tree.gpu("pci0000:18/0000:18:02.0/0000:19:00.0", 0)
    assert examine(read_machine(tmp_path)) == []
    (tree.sys / "class/infiniband/mlx5_0/ports/1/state").write_text("1: DOWN\n")
    told = {finding.about: finding for finding in examine(read_machine(tmp_path))}
    assert set(told) == {"mlx5_0", "cuda:0", "cpu:0"}
    assert "another socket" in told["cuda:0"].text
    assert "mlx5_1" in told["cpu:0"].remedy


def test_when_nothing_works_that_is_an_error(tmp_path: Path) -> None:
    tree = machines.dual_socket(tmp_path)
    for index in range(2):
        (tree.sys / f"class/infiniband/mlx5_{index}/ports/1/state").write_text("1: DOWN\n")
    assert "error" in {f.verdict for f in examine(read_machine(tmp_path)) if f.about == "RDMA"}


# ---- files


@pytest.mark.parametrize("sample", SAMPLES["accepted"], ids=lambda sample: sample["goal"])
def test_what_is_accepted_is_looked_up_as_in_the_core(sample: dict[str, Any]) -> None:
    topology = parse_topology(sample["text"])
    for location, device, cost, is_preferred in sample["looked_up"]:
        place = topology.location(location)
        assert (place is not None and device in place.preferred) == is_preferred
        assert topology.cost(location, device) == (None if cost is None else Cost(*cost))


@pytest.mark.parametrize("sample", SAMPLES["refused"], ids=lambda sample: sample["goal"])
def test_what_is_refused_is_refused_with_the_file_and_the_reason(sample: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="^topo.json.*: ."):
        parse_topology(sample["text"], "topo.json")


def test_bytes_that_are_no_text_and_files_too_large_are_refused() -> None:
    for text in (b"\xff\xfe{}", b"{" * 100_000, b" " * (TEXT_SIZE_MAX + 1), "[" * 500_000):
        with pytest.raises(InvalidArgumentError):
            parse_topology(text)
    assert parse_topology(b" " * (TEXT_SIZE_MAX - 2) + b"{}").locations == {}


names = st.text(min_size=1, max_size=12)
costs = st.builds(Cost, st.floats(0, 1e12), st.floats(0, 1e12))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    where = st.sampled_from(["*", "cpu:0", "cpu:1", "cuda:0", "cuda:12"])
    locations = {}
    for name in draw(st.lists(where, unique=True)):
        devices = draw(st.lists(names, unique=True, max_size=5))
        cut = draw(st.integers(0, len(devices)))
        told = draw(st.dictionaries(names | st.sampled_from(devices or ["a"]), costs, max_size=4))
        locations[name] = Location(tuple(devices[:cut]), tuple(devices[cut:]), told)
    return Topology(locations)


@given(topologies())
def test_what_is_written_is_read_as_it_was(topology: Topology) -> None:
    assert parse_topology(json.dumps(topology.to_json())) == topology
    lists = parse_topology(json.dumps(topology.to_original()))
    assert lists.to_original() == topology.to_original()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_json_is_read_or_refused(tree: object) -> None:
    for text in (json.dumps(tree), json.dumps({"cpu:0": tree}), json.dumps({"version": tree})):
        try:
            parse_topology(text)
        except InvalidArgumentError:
            continue


# ---- files against machines


def test_a_topology_that_fits_has_nothing_to_say(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    machine = read_machine(tmp_path)
    assert compare(topology_of(machine), machine) == []


def test_a_topology_that_does_not_fit_is_told_where(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    machine = read_machine(tmp_path)
    custom = parse_topology(
        '{"cpu:0": [["mlx5_0", "mlx5_4"], ["mlx6_0"]], "cuda:0": [["mlx5_7"], []],'
        ' "cuda:9": [[], []], "cuda:1": [[], []]}'
    )
    told = [(finding.about, finding.verdict, finding.text) for finding in compare(custom, machine)]

    def has(about: str, verdict: str, part: str) -> bool:
        return any(a == about and v == verdict and part in t for a, v, t in told)

    assert has("mlx6_0", "error", "no such device")
    assert has("cpu:0", "warning", "mlx5_4 is preferred")
    assert not has("cpu:0", "warning", "mlx5_0 is preferred")
    assert has("cuda:0", "warning", "2.0 times as long as mlx5_0")
    assert has("cuda:9", "warning", "no such memory")
    assert has("cuda:1", "warning", "no devices")
    assert has("cpu:1", "warning", "does not say")
    assert has("mlx5_1, mlx5_2, mlx5_3, mlx5_5, mlx5_6, mlx5_8", "note", "not used")
