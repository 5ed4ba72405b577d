"""The metrics of a node and of its clients: a table each, from the counts of the core to
Prometheus.

The core names what it counts (`Store.stats()`); these tables say what each name means, and nothing
else does. Names are `mooncake_hicache_node_<noun>_<unit>`, or `…_client_…`, counters end in
`_total`, times are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = [
    "CLIENT_METRICS",
    "NODE_METRICS",
    "NodeMetric",
    "NodeMetricsCollector",
    "client_metrics_text",
    "node_metrics_text",
]

PREFIX = "mooncake_hicache_node_"
CLIENT_PREFIX = "mooncake_hicache_client_"

Unit = Literal[
    "bytes",
    "pages",
    "requests",
    "seconds",
    "clients",
    "peers",
    "leases",
    "namespaces",
    "frames",
    "directories",
    "errors",
    "",
]


@dataclass(frozen=True)
class NodeMetric:
    """One line of the table."""

    stat: str
    """The key in `Node.stats()`."""
    kind: Literal["gauge", "counter", "histogram", "info"]
    unit: Unit
    help: str
    part: str = ""
    """For a count that is kept per namespace or tenant: which field of it."""

    @property
    def name(self) -> str:
        """The Prometheus name, without the `_total` that counters get when they are written out."""
        if self.kind == "info":
            return PREFIX.rstrip("_")
        if self.part:
            return f"{PREFIX}{self.owner}_{self.part}"
        for suffix in ("_ms", "_s"):
            if self.stat.endswith(suffix):
                return f"{PREFIX}{self.stat.removesuffix(suffix)}_seconds"
        return PREFIX + self.stat

    @property
    def owner(self) -> str:
        """Whose it is if it has a part: "namespace" or "tenant", the name of its label."""
        return self.stat.removesuffix("_use")

    @property
    def scale(self) -> float:
        """What the core's number is multiplied by: it counts milliseconds, Prometheus wants
        seconds."""
        return 0.001 if self.stat.endswith("_ms") else 1


_SSD_METRICS = (
    NodeMetric("ssd_size_bytes", "gauge", "bytes", "What the pages on SSD may take now"),
    NodeMetric("ssd_used_bytes", "gauge", "bytes", "Space on SSD that is in use, in whole regions"),
    NodeMetric("ssd_live_bytes", "gauge", "bytes", "Bytes of pages on SSD that can be had"),
    NodeMetric("ssd_pages", "gauge", "pages", "Pages on SSD"),
    NodeMetric("ssd_directories", "gauge", "directories", "Directories on SSD that are in use"),
    NodeMetric(
        "ssd_failed_directories", "gauge", "directories", "Directories on SSD that were given up"
    ),
    NodeMetric(
        "ssd_recovering", "gauge", "", "1 while what an earlier node left on SSD is being read"
    ),
    NodeMetric("ssd_recovery_ms", "gauge", "seconds", "Time that reading it took"),
    NodeMetric("ssd_writing_bytes", "gauge", "bytes", "Bytes on their way to SSD"),
    NodeMetric("ssd_flush_left_bytes", "gauge", "bytes", "Bytes that a flush has still to write"),
    NodeMetric("ssd_index_size_bytes", "gauge", "bytes", "Memory of the index of pages on SSD"),
    NodeMetric("ssd_eviction_age_s", "gauge", "seconds", "Age of the pages that are dropped there"),
    NodeMetric(
        "ssd_written_last_day_bytes", "gauge", "bytes", "Bytes written to SSD in the last 24 hours"
    ),
    NodeMetric(
        "ssd_budget_left_bytes",
        "gauge",
        "bytes",
        "Bytes that may be written to SSD at once; 0 without a budget too",
    ),
    NodeMetric("ssd_hit_pages", "counter", "pages", "Pages of get_hit_pages that are on SSD alone"),
    NodeMetric("ssd_hit_bytes", "counter", "bytes", "Bytes of get_hit_bytes that came from SSD"),
    NodeMetric("ssd_written_pages", "counter", "pages", "Pages written to SSD"),
    NodeMetric("ssd_written_bytes", "counter", "bytes", "Bytes of pages written to SSD"),
    NodeMetric(
        "ssd_device_written_bytes",
        "counter",
        "bytes",
        "Bytes written to SSD in all: pages, those written anew, padding, headers",
    ),
    NodeMetric(
        "ssd_rewritten_pages", "counter", "pages", "Pages written anew when their space was reused"
    ),
    NodeMetric("ssd_rewritten_bytes", "counter", "bytes", "Bytes of pages that were written anew"),
    NodeMetric(
        "ssd_refused_pages", "counter", "pages", "Pages not written to SSD to keep to the budget"
    ),
    NodeMetric(
        "ssd_overrun_pages", "counter", "pages", "Pages that left memory before they were on SSD"
    ),
    NodeMetric("ssd_put_waits", "counter", "", "Times that a put waited for SSDs and found room"),
    NodeMetric("ssd_put_waits_in_vain", "counter", "", "Times that a put waited for SSDs in vain"),
    NodeMetric(
        "ssd_oversize_pages",
        "counter",
        "pages",
        "Pages stored that are larger than a region on SSD",
    ),
    NodeMetric("ssd_dropped_pages", "counter", "pages", "Pages dropped when space was reused"),
    NodeMetric("ssd_staged_pages", "counter", "pages", "Pages brought into memory by look-ups"),
    NodeMetric("ssd_staged_bytes", "counter", "bytes", "Bytes of pages brought into memory"),
    NodeMetric(
        "ssd_corrupt_pages", "counter", "pages", "Pages on SSD whose bytes had changed; dropped"
    ),
    NodeMetric("ssd_read_errors", "counter", "errors", "Reads that an SSD did not do"),
    NodeMetric("ssd_write_errors", "counter", "errors", "Writes that an SSD did not do"),
    NodeMetric("ssd_recovered_pages", "counter", "pages", "Pages found that an earlier node left"),
    NodeMetric("ssd_seconds", "histogram", "seconds", "Time an SSD takes, by operation"),
)

_CLUSTER_METRICS = (
    NodeMetric("cluster_joined", "gauge", "", "1 if a master counts this node as a member"),
    NodeMetric("cluster_draining", "gauge", "", "1 if it was asked to give its pages away"),
    NodeMetric("replica_pages", "gauge", "pages", "Pages that should have copies at other nodes"),
    NodeMetric("replicated_pages", "counter", "pages", "Pages that got theirs"),
    NodeMetric("drain_left_bytes", "gauge", "bytes", "Bytes to give away before it leaves"),
    NodeMetric("drained_pages", "counter", "pages", "Pages that others took as it leaves"),
    NodeMetric("drain_given_up_pages", "counter", "pages", "Pages that none of them took"),
    NodeMetric("cluster_announcing", "gauge", "", "1 while it tells a master all it has"),
    NodeMetric("cluster_pending_pages", "gauge", "pages", "Pages whose change waits to be told"),
    NodeMetric("cluster_lag_ms", "gauge", "seconds", "Age of the oldest change no master knows of"),
    NodeMetric("cluster_joins", "counter", "", "Times that it joined, first or again"),
    NodeMetric("cluster_orders", "counter", "", "Orders of masters that it carried out"),
    NodeMetric("cluster_batches", "counter", "", "Batches of changes that a master took"),
    NodeMetric("cluster_changes", "counter", "", "Changes in them"),
    NodeMetric("cluster_announcements", "counter", "", "Times that it told all it has"),
    NodeMetric("cluster_overflows", "counter", "", "Those because too many changes waited"),
    NodeMetric("cluster_refused_batches", "counter", "", "Batches for which a master lacked room"),
)

_REMOTE_METRICS = (
    NodeMetric("peers", "gauge", "peers", "Nodes connected that read here"),
    NodeMetric("remote_peers", "gauge", "peers", "Nodes known that may be read from"),
    NodeMetric("remote_coming_bytes", "gauge", "bytes", "Bytes on their way from other nodes"),
    NodeMetric(
        "remote_found_pages", "counter", "pages", "Pages looked up and found at other nodes"
    ),
    NodeMetric("remote_fetched_pages", "counter", "pages", "Pages brought here from other nodes"),
    NodeMetric("remote_fetched_bytes", "counter", "bytes", "Bytes brought here from other nodes"),
    NodeMetric(
        "remote_stale_pages", "counter", "pages", "Pages that were not where the directory said"
    ),
    NodeMetric(
        "remote_corrupt_pages", "counter", "pages", "Pages that came with other bytes; not kept"
    ),
    NodeMetric("remote_no_space_pages", "counter", "pages", "Pages not fetched for want of room"),
    NodeMetric("remote_read_errors", "counter", "errors", "Pages whose transfer failed"),
    NodeMetric("remote_call_errors", "counter", "errors", "Questions a node did not answer"),
    NodeMetric(
        "remote_locate_errors", "counter", "errors", "Questions the directory did not answer"
    ),
    NodeMetric(
        "remote_late_requests", "counter", "requests", "Requests answered without their pages"
    ),
    NodeMetric("remote_breaker_opens", "counter", "", "Times a node was left alone"),
    NodeMetric("peer_leased_pages", "counter", "pages", "Pages that other nodes were let read"),
    NodeMetric("peer_leased_bytes", "counter", "bytes", "Bytes that other nodes were let read"),
    NodeMetric("rejected_peers", "counter", "peers", "Nodes turned away, or cut off"),
    NodeMetric(
        "remote_seconds", "histogram", "seconds", "Time requests wait for other nodes, by operation"
    ),
)

NODE_METRICS: tuple[NodeMetric, ...] = (
    NodeMetric("pool_size_bytes", "gauge", "bytes", "Size of the pool"),
    NodeMetric("pool_size_max_bytes", "gauge", "bytes", "What the pool may grow to"),
    NodeMetric("pool_grown_bytes", "gauge", "bytes", "Part of the pool that is in use so far"),
    NodeMetric("pool_backed_bytes", "gauge", "bytes", "Part of the pool that memory stands behind"),
    NodeMetric("pool_used_bytes", "gauge", "bytes", "Bytes of the pages in the pool"),
    NodeMetric("pool_waste_bytes", "gauge", "bytes", "Bytes lost to rounding pages up to slots"),
    NodeMetric("pool_reserved_bytes", "gauge", "bytes", "Bytes of puts under way"),
    NodeMetric("pool_held_bytes", "gauge", "bytes", "Bytes that cannot be evicted now"),
    NodeMetric("pool_spare_bytes", "gauge", "bytes", "Bytes of pages that leave first for puts"),
    NodeMetric("pinned_bytes", "gauge", "bytes", "Bytes of hard-pinned pages"),
    NodeMetric("pages", "gauge", "pages", "Pages in the pool"),
    NodeMetric("namespaces", "gauge", "namespaces", "Namespaces that clients have opened"),
    NodeMetric("clients", "gauge", "clients", "Clients connected now"),
    NodeMetric("leases", "gauge", "leases", "Leases that are running"),
    NodeMetric("leased_bytes", "gauge", "bytes", "Bytes of pages that look-ups have leased"),
    NodeMetric("index_size_bytes", "gauge", "bytes", "Memory of the index"),
    NodeMetric("eviction_age_ms", "gauge", "seconds", "Age of the pages that are evicted now"),
    NodeMetric("uptime_ms", "gauge", "seconds", "Time since the node started"),
    NodeMetric("lookup_requests", "counter", "requests", "Look-up requests"),
    NodeMetric("lookup_hit_pages", "counter", "pages", "Pages looked up and there"),
    NodeMetric("lookup_miss_pages", "counter", "pages", "Pages looked up and not there"),
    NodeMetric("get_requests", "counter", "requests", "Get requests"),
    NodeMetric(
        "get_hit_pages",
        "counter",
        "pages",
        "Pages gets asked for and were sent to",
    ),
    NodeMetric("get_miss_pages", "counter", "pages", "Pages asked for by gets and not there"),
    NodeMetric("get_hit_bytes", "counter", "bytes", "Bytes of pages handed to gets"),
    NodeMetric("put_requests", "counter", "requests", "Put requests"),
    NodeMetric("put_stored_pages", "counter", "pages", "Pages stored by puts"),
    NodeMetric("put_existing_pages", "counter", "pages", "Pages of puts that were there already"),
    NodeMetric("put_stored_bytes", "counter", "bytes", "Bytes of pages stored by puts"),
    NodeMetric("put_no_space_pages", "counter", "pages", "Pages of puts refused for want of room"),
    NodeMetric(
        "put_over_quota_pages",
        "counter",
        "pages",
        "Pages of puts refused because their tenant may have no more",
    ),
    NodeMetric("aborted_pages", "counter", "pages", "Pages reserved and never committed"),
    NodeMetric("evicted_pages", "counter", "pages", "Pages evicted to make room"),
    NodeMetric("evicted_bytes", "counter", "bytes", "Bytes of pages evicted to make room"),
    NodeMetric(
        "quota_evicted_pages", "counter", "pages", "Pages evicted because of their tenant's quota"
    ),
    NodeMetric("expired_pages", "counter", "pages", "Pages dropped because their time was over"),
    NodeMetric("removed_pages", "counter", "pages", "Pages removed by request"),
    NodeMetric("cleared_pages", "counter", "pages", "Pages dropped with their whole namespace"),
    NodeMetric(
        "corrupt_pages", "counter", "pages", "Pages dropped because their bytes had changed"
    ),
    NodeMetric("rejected_clients", "counter", "clients", "Clients turned away"),
    NodeMetric(
        "bad_frames", "counter", "frames", "Frames that made no sense; the connection was closed"
    ),
    NodeMetric("requests_seconds", "histogram", "seconds", "Time to serve a request, by operation"),
    NodeMetric("namespace_use", "gauge", "pages", "Pages of a namespace", part="pages"),
    NodeMetric("namespace_use", "gauge", "bytes", "Bytes of a namespace", part="size_bytes"),
    NodeMetric("namespace_use", "gauge", "pages", "Pages of a namespace on SSD", part="ssd_pages"),
    NodeMetric(
        "tenant_use", "gauge", "bytes", "Bytes that a tenant with a quota uses", part="used_bytes"
    ),
    NodeMetric("tenant_use", "gauge", "bytes", "Quota of a tenant here", part="limit_bytes"),
    *_SSD_METRICS,
    *_CLUSTER_METRICS,
    *_REMOTE_METRICS,
    NodeMetric("incarnation", "info", "", "Which start of the node this is"),
    NodeMetric("pid", "info", "", "Process of the node"),
    NodeMetric("eviction_policy", "info", "", "Who goes first when room is needed"),
)


CLIENT_METRICS = {
    "connected": "1 while a node is connected",
    "connects": "Times that a node was connected to",
    "lookup_calls": "Look-ups",
    "get_calls": "Gets",
    "get_pages": "Pages that gets asked for",
    "get_hit_pages": "Pages of them that came",
    "get_bytes": "Bytes of those",
    "put_calls": "Puts",
    "put_pages": "Pages stored by puts",
    "put_bytes": "Bytes of those",
    "corrupt_pages": "Pages that were dropped because their bytes had changed",
    "foreign_size_pages": "Pages of another size than they were asked for with",
    "ssd_hit_pages": "Pages that came from SSD",
    "ssd_bytes": "Bytes of those",
    "ssd_failed_pages": "Pages that SSD did not give in time, or damaged",
    "timeouts": "Calls that ended without an answer of the node",
    "unavailable": "Calls without a node",
}
"""What `connected`, a gauge, and the counters of a client mean."""


class NodeMetricsCollector(Collector):
    """Turns a node's counts into metrics at the moment they are asked for.

    Args:
        stats: Returns the counts; called once per collection, from the collecting thread.
        version: The package's version, a label of the info metric.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]], version: str) -> None:
        self._stats = stats
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the table."""
        stats = self._stats()
        labels = {"version": self._version}
        for metric in NODE_METRICS:
            value = stats[metric.stat]
            if metric.kind == "info":
                labels[metric.stat] = str(value)
            elif metric.part:
                yield _by_owner(metric, value)
            elif metric.kind == "histogram":
                yield _histogram(metric, value)
            elif metric.kind == "counter":
                yield CounterMetricFamily(metric.name, metric.help, value=value * metric.scale)
            else:
                yield GaugeMetricFamily(metric.name, metric.help, value=value * metric.scale)
        identity = InfoMetricFamily(PREFIX.rstrip("_"), "The node that answers")
        identity.add_metric([], labels)
        yield identity


def node_metrics_text(stats: Mapping[str, Any], version: str) -> bytes:
    """Return the metrics of one reading of the counts in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeMetricsCollector(lambda: stats, version))
    return generate_latest(registry)


class _ClientMetricsCollector(Collector):
    def __init__(self, stats: Mapping[str, Any]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        for stat, text in CLIENT_METRICS.items():
            family = GaugeMetricFamily if stat == "connected" else CounterMetricFamily
            yield family(CLIENT_PREFIX + stat, text, value=float(self._stats[stat]))


def client_metrics_text(stats: Mapping[str, Any]) -> bytes:
    """Return the metrics of one reading of a client's counts in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ClientMetricsCollector(stats))
    return generate_latest(registry)


def _by_owner(metric: NodeMetric, use: Sequence[Mapping[str, Any]]) -> GaugeMetricFamily:
    # Long descriptions are cut, so two namespaces may share a label: Prometheus wants one sample.
    label = "description" if metric.owner == "namespace" else metric.owner
    totals: dict[str, float] = {}
    for one in use:
        totals[one[label]] = totals.get(one[label], 0) + one[metric.part]
    family = GaugeMetricFamily(metric.name, metric.help, labels=[metric.owner])
    for name, total in totals.items():
        family.add_metric([name], total)
    return family


def _histogram(metric: NodeMetric, by_operation: Mapping[str, Any]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.help, labels=["op"])
    for operation, histogram in by_operation.items():
        total = 0
        buckets: list[tuple[str, float]] = []
        bounds = [str(bound) for bound in histogram["bounds"]] + ["+Inf"]
        for bound, count in zip(bounds, histogram["counts"], strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([operation], buckets=buckets, sum_value=histogram["sum"])
    return family
