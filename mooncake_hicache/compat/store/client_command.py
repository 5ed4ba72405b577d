"""`mooncake_client` over our node, with the original's flags: keeps a node of this machine running
for programs that call `setup_dummy`.

    mooncake_client --master_server_address=127.0.0.1:50051 --port=50052 --global_segment_size=4GB
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from mooncake_hicache.compat.flags import Flag, Flags
from mooncake_hicache.compat.store import MooncakeDistributedStore
from mooncake_hicache.compat.store.clients import announced
from mooncake_hicache.compat.store.settings import HTTP_PORT, setup_of
from mooncake_hicache.errors import Error, UnavailableError

__all__ = ["main"]

PROGRAM = "mooncake_client"
FLAGS = {
    "host": Flag("0.0.0.0", "this machine, as other nodes reach it"),
    "port": Flag(50052, "by which programs of this machine find it; nothing listens there"),
    "master_server_address": Flag("127.0.0.1:50051", "the master"),
    "protocol": Flag("tcp", "tcp or rdma, between nodes"),
    "device_names": Flag("", "RDMA devices, separated by commas"),
    "global_segment_size": Flag("4 GB", "the node's pool, if it is started"),
    "tenant_id": Flag("default", "whose objects the programs see"),
    "metadata_server": Flag("http://127.0.0.1:8080/metadata", "without effect"),
    "local_buffer_size": Flag("0", "without effect: there is no such buffer"),
    "threads": Flag(1, "without effect: the option copy_threads decides"),
    "enable_offload": Flag(False, "without effect: the option ssd of the node decides"),
    "start_offload_rpc_server": Flag(True, "without effect"),
    "enable_http_server": Flag(False, "/health, /metrics and /metrics/summary over HTTP"),
    "http_port": Flag(HTTP_PORT, "at this port; on loopback, or where the option http_host says"),
}

_log = logging.getLogger("mooncake_hicache.client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program until SIGTERM or SIGINT; return its exit status."""
    flags = Flags(FLAGS)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    try:
        flags.parse(sys.argv[1:] if arguments is None else arguments)
        if flags.wants_help:
            sys.stdout.write(flags.usage(PROGRAM))
            return 0
        for name, flag in FLAGS.items():
            if flags.values[name] != flag.default and flag.help.startswith("without effect"):
                _log.warning("--%s is %s", name, flag.help)
        _serve(flags)
    except Error as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    return 0


def _serve(flags: Flags) -> None:
    given = {
        "local_hostname": flags.text("host"),
        "global_segment_size": flags.text("global_segment_size"),
        "protocol": flags.text("protocol"),
        "rdma_devices": flags.text("device_names"),
        "master_server_addr": flags.text("master_server_address"),
        "tenant_id": flags.text("tenant_id"),
        "enable_client_http_server": bool(flags.values["enable_http_server"]),
        "client_http_port": flags.number("http_port"),
    }
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    store = MooncakeDistributedStore()
    with announced(flags.number("port"), setup_of([given], {})):
        if store.setup(given) != 0:
            raise UnavailableError(store.last_error)
        _log.info("programs find the node by port %d", flags.number("port"))
        stop.wait()
    store.close()


if __name__ == "__main__":
    sys.exit(main())
