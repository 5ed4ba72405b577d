"""`python -m bench NAME [--json FILE] [--plot FILE]`; without a name, the list.

Two more need a process or a machine of their own and are modules to be run.
"""

from __future__ import annotations

import importlib
import sys

BENCHES = {
    "pages": "put, get and exists by size and batch, beside the best copy of this machine",
    "hits": "replay of a trace: hits by capacity and policy, beside Belady's optimum",
    "ssd": "pages on SSD: reads, write-out, recovery, hits beyond memory, beside fio",
    "store": "the Store API of mooncake.store, ours and the original's, in turns",
    "transfer": "memory between processes, by size and transport, beside bare TCP and copies",
    "cluster": "pages of another node over TCP, beside the transfer engine alone",
    "demo": "the real server, with every output compared",
}
MODULES = {
    "bench.adapter": "what the adapter's Python costs per call of the engine; prints JSON",
    "bench.gpu": "time to first token with the real server on a GPU: see bench/gpu/README.md",
}


def main(argv: list[str]) -> int:
    """Run the benchmark that the first argument names; each explains itself with --help."""
    if not argv or argv[0] not in BENCHES:
        print("python -m bench NAME [--json FILE] [--plot FILE] [--help]\n")
        for name, about in BENCHES.items():
            print(f"  {name:10}{about}")
        print("\npython -m MODULE\n")
        for name, about in MODULES.items():
            print(f"  {name:15}{about}")
        return 0 if not argv or argv[0] in ("-h", "--help") else 2
    module = importlib.import_module(f"bench.{argv[0]}")
    return int(module.main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
