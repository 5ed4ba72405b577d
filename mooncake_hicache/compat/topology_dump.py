"""`transfer_engine_topology_dump`: prints which RDMA devices are near to which memory.

`mooncake-hicache topology` shows more: distances, costs, what is wrong and the remedy.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mooncake_hicache.compat.local_topology import devices_of, local_topology
from mooncake_hicache.errors import Error

__all__ = ["main"]

_CUSTOM = "MC_CUSTOM_TOPO_JSON"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="transfer_engine_topology_dump",
        description="Print this machine's topology as JSON: for each place of memory the preferred "
        "RDMA devices, and the others.",
    )
    parser.add_argument(
        "--device-name", default="", metavar="NAMES", help="only these devices: mlx5_0,mlx5_1"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=["auto", "te", "tent"],
        help="auto and te are the same here; tent has a form of its own, which is not supported",
    )
    parser.add_argument(
        "--use-custom-topo", action="store_true", help=f"the file that {_CUSTOM} names"
    )
    parser.add_argument("--custom-topo-json", metavar="FILE", help="this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print it; return the exit status."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.backend == "tent":
        parser.error("--backend tent is not supported: use te, or `mooncake-hicache topology`")
    custom = flags.custom_topo_json or ""
    if flags.use_custom_topo and not custom:
        custom = os.environ.get(_CUSTOM, "")
        if not custom:
            parser.error(
                f"--use-custom-topo: {_CUSTOM} is not set; name a file with it, or with "
                "--custom-topo-json"
            )
    try:
        text = local_topology(devices_of(flags.device_name), custom)
    except Error as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    origin = "custom" if custom else "discover"
    sys.stdout.write(f"Local topology [te/{origin}]: {text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
