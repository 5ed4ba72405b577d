"""This machine's topology in the original's form: the preferred and the other devices of each place
of memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.topology import Topology, detect, parse_topology, topology_of

__all__ = ["devices_of", "local_topology"]


def devices_of(text: str) -> list[str]:
    """Return the devices of a list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def local_topology(device_names: Iterable[str] = (), custom_path: str = "") -> str:
    """Return the JSON of it.

    Args:
        device_names: Only these; none: all.
        custom_path: A file that says it; empty: what this machine tells.

    Raises:
        InvalidArgumentError: The file cannot be read, or is no topology.
    """
    wanted = set(device_names)
    topology = _read(custom_path) if custom_path else topology_of(detect())
    tree = {
        place: [[name for name in names if not wanted or name in wanted] for names in lists]
        for place, lists in topology.to_original().items()
    }
    return json.dumps(tree, indent=1)


def _read(path: str) -> Topology:
    try:
        return parse_topology(Path(path).read_bytes(), path)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read the topology file {path}: {error.strerror}"
        ) from None
