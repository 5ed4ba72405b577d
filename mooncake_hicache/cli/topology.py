"""`mooncake-hicache topology`: which network device is near to which memory, and what is wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mooncake_hicache.cli.common import EXIT_ERROR, console, print_json
from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.topology import (
    Finding,
    Machine,
    Topology,
    compare,
    detect,
    examine,
    parse_topology,
    topology_of,
)
from mooncake_hicache.topology.distance import device_rate_gbps, gpu_distance, memory_distance
from mooncake_hicache.topology.sysfs import RdmaDevice

__all__ = ["topology_command"]

_STYLES = {"note": "cyan", "warning": "yellow", "error": "bold red"}


def topology_command(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: a topology file, with what was found beside it."),
    ] = False,
    check: Annotated[
        str,
        typer.Option("--check", metavar="FILE", help="Check a topology file against the machine."),
    ] = "",
    root: Annotated[
        Path,
        typer.Option(
            "--root", metavar="FOLDER", help="Read sys and proc below this folder instead of /."
        ),
    ] = Path("/"),
) -> None:
    """Show NUMA nodes, GPUs, RDMA devices, and how near they are to each other.

    Changes nothing. Exit status: 0 without errors (there may be warnings), 1 with.
    """
    machine = detect(root)
    if check:
        topology = parse_topology(_read(check), check)
        findings = compare(topology, machine)
    else:
        topology, findings = topology_of(machine), examine(machine)
    failed = any(finding.verdict == "error" for finding in findings)
    if as_json:
        print_json(
            {
                **topology.to_json(),
                "machine": asdict(machine),
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _print(machine, topology, findings)
    raise typer.Exit(EXIT_ERROR if failed else 0)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read the topology file {path}: {error.strerror}"
        ) from None


def _print(machine: Machine, topology: Topology, findings: list[Finding]) -> None:
    _print_devices(machine)
    _print_matrix(machine, topology)
    if findings:
        console.print()
    table = Table(box=None, show_header=False, pad_edge=False)
    for wrap in (True, True, False):
        table.add_column(no_wrap=wrap, overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="bold")
        table.add_row(Text(finding.verdict, style=_STYLES[finding.verdict]), finding.about, text)
    console.print(table)


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _row(table: Table, *cells: str) -> None:
    # As text: a name with brackets in it is none of rich's styles.
    table.add_row(*(Text(cell) for cell in cells))


def _print_devices(machine: Machine) -> None:
    nodes = _table("memory", "where", "what")
    for node in machine.numa:
        size = f"{node.memory_bytes / (1 << 30):.0f} GiB" if node.memory_bytes else "none"
        _row(nodes, f"cpu:{node.node}", node.cpus or "none", size)
    for gpu in machine.gpus:
        at = f"{gpu.place.pci}, {_numa(gpu.place.numa)}"
        _row(nodes, f"cuda:{gpu.index}", at, gpu.model)
    console.print(nodes)
    console.print()
    devices = _table("device", "PCI", "near", "link", "rate", "port", "addresses")
    for device in machine.rdma:
        _row(devices, *_device_cells(device))
    for net in machine.nets:
        rate = f"{net.rate_gbps:g} Gb/s" if net.rate_gbps else "?"
        at = net.place.pci or "virtual"
        link = f"network, MTU {net.mtu}"
        _row(devices, net.name, at, _numa(net.place.numa), link, rate, net.state, "")
    console.print(devices)


def _device_cells(device: RdmaDevice) -> tuple[str, ...]:
    links = {port.link_layer for port in device.ports if port.link_layer}
    link = "RoCE" if links == {"Ethernet"} else ", ".join(sorted(links)) or "?"
    rate = device_rate_gbps(device)
    gids = [gid for port in device.ports for gid in port.gids]
    # Of InfiniBand ports the kernel says IB/RoCE v1 too, which only confuses.
    types = sorted({gid.type for gid in gids if gid.type}) if link == "RoCE" else []
    return (
        device.name,
        device.place.pci or "virtual",
        _numa(device.place.numa),
        f"soft-RoCE over {', '.join(device.nets)}" if device.is_soft else link,
        f"{rate:g} Gb/s" if rate else "?",
        ", ".join(port.state or "?" for port in device.ports) or "none",
        f"{len(gids)} ({', '.join(types)})" if types else str(len(gids)),
    )


def _numa(numa: int) -> str:
    return f"node {numa}" if numa >= 0 else "node ?"


def _print_matrix(machine: Machine, topology: Topology) -> None:
    devices = topology.devices()
    if not devices:
        return
    console.print()
    table = _table("from", *devices)
    for name, place in topology.locations.items():
        cells = []
        for device in devices:
            mark = "*" if device in place.preferred else " " if device in place.others else "-"
            cost = place.cost(device)
            took = f" {cost.of(1 << 20) / 1000:.0f} us" if cost else ""
            cells.append(f"{mark} {_distance(machine, name, device)}{took}")
        _row(table, name, *cells)
    console.print(table)
    console.print(
        Text(
            "* preferred, - not used now; us: expected for 1 MiB, which the engine corrects by "
            "what it measures",
            style="dim",
        )
    )


def _distance(machine: Machine, location: str, device: str) -> str:
    """Return the word for how far they are; nothing if the machine lacks one of them."""
    found = next((one for one in machine.rdma if one.name == device), None)
    if found is not None:
        for node in machine.numa:
            if location == f"cpu:{node.node}":
                return memory_distance(node, found.place)
        for gpu in machine.gpus:
            if location == f"cuda:{gpu.index}":
                return gpu_distance(gpu.place, found.place)
    return "?"
