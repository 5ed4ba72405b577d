"""Run a node as a process: `python -m mooncake_hicache.node [--detached DESCRIPTOR]
OPTIONS_AS_JSON`.

This is what `spawn.start_detached` runs; people use `mooncake-hicache node`.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> int:
    """Run the node that the arguments describe, and return the exit status."""
    report_descriptor = -1
    if len(arguments) == 3 and arguments[0] == "--detached":
        report_descriptor = int(arguments[1])
        arguments = arguments[2:]
        # The starter is to be no parent of the node. Before the imports, while there is one thread
        # and little memory to copy.
        if os.fork() != 0:
            os._exit(0)
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    from mooncake_hicache.node.daemon import run_from_json

    return run_from_json(arguments[0], report_descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
