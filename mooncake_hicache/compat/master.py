"""`mooncake_master` over our master, with the original's flags.

    mooncake_master --enable_http_metadata_server=true --rpc_port=50051

Flags of what nodes decide here (eviction, leases, SSD, snapshots, tasks …) are known, change
nothing, and say so when they are given. It listens on every address, as the original does: whoever
does not know the secret is refused. The HTTP port is on loopback unless --metrics_host says
otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from mooncake_hicache.compat.flags import Flag, Flags
from mooncake_hicache.config import MasterOptions
from mooncake_hicache.errors import Error, InvalidArgumentError
from mooncake_hicache.master.master import run_master
from mooncake_hicache.metadata.http import TOKEN_ENVIRONMENT
from mooncake_hicache.metadata.server import MetadataServer, listen
from mooncake_hicache.options_master import MASTER_PORT

__all__ = ["main"]

PROGRAM = "mooncake_master"
FLAGS = {
    "rpc_address": Flag("0.0.0.0", "where nodes and clients reach the master"),
    "rpc_port": Flag(0, "at which port; 0: that of --port"),
    "port": Flag(MASTER_PORT, "the same, by its older name"),
    "metrics_host": Flag("127.0.0.1", "where the HTTP port listens"),
    "metrics_port": Flag(9003, "the HTTP port: metrics, health, who leads, the nodes"),
    "enable_metric_reporting": Flag(True, "false: no HTTP port"),
    "enable_http_metadata_server": Flag(False, "also serve names of transfer engines"),
    "http_metadata_server_host": Flag("0.0.0.0", "where that listens"),
    "http_metadata_server_port": Flag(8080, "and at which port"),
    "enable_ha": Flag(False, "several masters: etcd decides which one leads"),
    "ha_backend_type": Flag("etcd", "redis and k8s are not supported", ("etcd", "redis", "k8s")),
    "ha_backend_connstring": Flag("", "etcd's endpoints, as --etcd_endpoints"),
    "etcd_endpoints": Flag("", "host:port;host:port"),
    "cluster_id": Flag("mooncake_cluster", "which masters belong together"),
}
# What nodes decide here, or what belongs to the library that the original logs with.
_BY_NODES = "without effect: the options of the node decide (mooncake-hicache node --help)"
_NOT_NEEDED = "without effect: the directory is made anew from the nodes, nothing is kept"
_OTHER = "without effect"
WITHOUT_EFFECT: dict[str, dict[str, str | bool]] = {
    _BY_NODES: {
        "memory_allocator": "offset",
        "allocation_strategy": "random",
        "eviction_high_watermark_ratio": "0.9",
        "eviction_ratio": "0.05",
        "default_kv_lease_ttl": "10000",
        "default_kv_soft_pin_ttl": "1800000",
        "max_kv_soft_pin_ttl": "86400000",
        "allow_evict_soft_pinned_objects": True,
        "put_start_discard_timeout_sec": "30",
        "put_start_release_timeout_sec": "600",
        "use_mmap_arena_allocator": False,
        "mmap_arena_pool_size": "8589934592",
        "enable_offload": False,
        "offload_on_evict": False,
        "offload_force_evict": False,
        "offload_cap_ratio": "0.5",
        "offloading_queue_limit": "50000",
        "promotion_on_hit": False,
        "promotion_admission_threshold": "2",
        "promotion_max_per_heartbeat": "1",
        "promotion_queue_limit": "50000",
        "root_fs_dir": "",
        "global_file_segment_size": "",
        "enable_disk_eviction": True,
        "quota_bytes": "0",
        "enable_multi_tenants": False,
        "tenant_quota_connector_type": "file",
        "tenant_quota_connector_uri": "",
        "dynamic_replication_mode": "off",
        "dynamic_replication_admission_qps_threshold": "0.8",
        "dynamic_replication_heat_window_seconds": "10",
        "dynamic_replication_max_memory_replicas": "2",
        "max_total_pending_tasks": "10000",
        "max_total_processing_tasks": "10000",
        "max_total_finished_tasks": "10000",
        "pending_task_timeout_sec": "300",
        "processing_task_timeout_sec": "300",
        "max_retry_attempts": "10",
    },
    _NOT_NEEDED: {
        "enable_oplog": False,
        "oplog_batch_max_entries": "1024",
        "oplog_poll_interval_ms": "1000",
        "batch_oplog_retry_timeout_sec": "180",
        "enable_snapshot": False,
        "enable_snapshot_restore": False,
        "snapshot_interval_seconds": "600",
        "snapshot_child_timeout_seconds": "300",
        "snapshot_retention_count": "2",
        "snapshot_backup_dir": "",
        "snapshot_object_store_type": "local",
        "snapshot_catalog_store_type": "",
        "snapshot_catalog_store_connstring": "",
    },
    _OTHER: {
        "rpc_thread_num": "0",
        "max_threads": "16",
        "rpc_interface": "",
        "rpc_conn_timeout_seconds": "0",
        "rpc_enable_tcp_no_delay": True,
        "enable_metadata_cleanup_on_timeout": False,
        "config_path": "",
        "pod_name": "",
        "pod_namespace": "",
        "client_ttl": "10",
        "enable_gc": False,
        "nof_eviction_high_watermark_ratio": "0.9",
        "nof_eviction_ratio": "0.05",
        "nof_heartbeat_interval_sec": "10",
        "nof_heartbeat_probe_timeout_ms": "1000",
        "nof_heartbeat_failures_threshold": "3",
        "enable_cxl": False,
        "cxl_path": "/dev/dax0.0",
        "cxl_size": "8589934592",
        "enable_kv_events": False,
        "kv_events_bind_endpoint": "",
        "kv_events_backend_id": "",
        "kv_events_queue_capacity": "",
        "kv_events_emit_object_key": True,
        "kv_events_emit_legacy_compat": True,
        "logtostderr": False,
        "alsologtostderr": False,
        "log_dir": "",
        "minloglevel": "0",
        "stderrthreshold": "2",
        "v": "0",
        "vmodule": "",
    },
}
_SILENT = {"logtostderr", "alsologtostderr", "log_dir", "minloglevel", "stderrthreshold", "v"}

_log = logging.getLogger("mooncake_hicache.master")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    every = {
        name: Flag(default, why)
        for why, group in WITHOUT_EFFECT.items()
        for name, default in group.items()
    }
    flags = Flags({**FLAGS, **every})
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    try:
        flags.parse(sys.argv[1:] if arguments is None else arguments)
        if flags.wants_help:
            sys.stdout.write(flags.usage(PROGRAM))
            return 0
        options = _options_of(flags)
        for name, flag in every.items():
            if flags.values[name] != flag.default and name not in _SILENT:
                _log.warning("--%s is %s", name, flag.help)
        with contextlib.ExitStack() as stack:
            if flags.values["enable_http_metadata_server"]:
                server = stack.enter_context(_metadata_server(flags))
                _log.info("names of transfer engines are at %s", server.url)
            return run_master(options, lambda line: _log.info("%s", line))
    except Error as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1


def _options_of(flags: Flags) -> MasterOptions:
    etcd = ""
    if flags.values["enable_ha"]:
        if flags.text("ha_backend_type") != "etcd":
            raise InvalidArgumentError(
                f"--ha_backend_type={flags.text('ha_backend_type')} is not supported: give etcd"
            )
        etcd = flags.text("etcd_endpoints") or flags.text("ha_backend_connstring")
        etcd = etcd.replace(";", ",").replace("http://", "").replace("etcd://", "")
        if not etcd:
            raise InvalidArgumentError("--enable_ha needs --etcd_endpoints=host:port;host:port")
    return MasterOptions(
        host=flags.text("rpc_address"),
        port=flags.number("rpc_port") or flags.number("port"),
        http_host=flags.text("metrics_host"),
        http_port=flags.number("metrics_port") if flags.values["enable_metric_reporting"] else -1,
        etcd=etcd,
        cluster=flags.text("cluster_id"),
    )


def _metadata_server(flags: Flags) -> MetadataServer:
    host, port = flags.text("http_metadata_server_host"), flags.number("http_metadata_server_port")
    return MetadataServer(listen(host, port), token=os.environ.get(TOKEN_ENVIRONMENT, ""))


if __name__ == "__main__":
    sys.exit(main())
