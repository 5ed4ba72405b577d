"""The metrics of a master: what its directory counts, in Prometheus's text format.

Beside our own names, the original's, of which its dashboards make use, where we have the figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["MASTER_METRICS", "MasterMetric", "master_metrics_text"]

PREFIX = "mooncake_hicache_master_"


@dataclass(frozen=True)
class MasterMetric:
    """One line of the table."""

    stat: str
    """The key in `Directory.stats()`."""
    kind: Literal["gauge", "counter"]
    help: str


MASTER_METRICS: tuple[MasterMetric, ...] = (
    MasterMetric("epoch", "gauge", "Epoch it leads with; 0: it does not lead"),
    MasterMetric("nodes_joining", "gauge", "Nodes whose pages are not known yet"),
    MasterMetric("nodes_announcing", "gauge", "Nodes that tell their pages"),
    MasterMetric("nodes_live", "gauge", "Nodes whose pages are known"),
    MasterMetric("nodes_draining", "gauge", "Nodes that give their pages away"),
    MasterMetric("nodes_suspect", "gauge", "Nodes that are not heard of, and are being probed"),
    MasterMetric("nodes_gone", "gauge", "Nodes that have left or were lost"),
    MasterMetric("pages", "gauge", "Pages known, whichever nodes have them"),
    MasterMetric("namespaces", "gauge", "Namespaces of those pages"),
    MasterMetric("holdings", "gauge", "Different sets of nodes that have a page"),
    MasterMetric("memory_bytes", "gauge", "Memory of the directory"),
    MasterMetric("connections", "gauge", "Connections now"),
    MasterMetric("locate_requests", "counter", "Look-up requests"),
    MasterMetric("locate_keys", "counter", "Pages looked up"),
    MasterMetric("locate_hits", "counter", "Pages looked up and known"),
    MasterMetric("batches", "counter", "Batches of changes taken from nodes"),
    MasterMetric("changes", "counter", "Changes in them"),
    MasterMetric("refused_changes", "counter", "Changes that there was no room for"),
    MasterMetric("late_changes", "counter", "Changes of namespaces that were cleared meanwhile"),
    MasterMetric("repeated_batches", "counter", "Batches that were taken already"),
    MasterMetric("lost_batches", "counter", "Gaps in a node's batches, which it fills anew"),
    MasterMetric("announcements", "counter", "Times that a node told all its pages"),
    MasterMetric("suspicions", "counter", "Nodes that were not heard of for a while"),
    MasterMetric("probes", "counter", "Probes of such nodes"),
    MasterMetric("expiries", "counter", "Nodes given up"),
    MasterMetric("requests", "counter", "Requests in all"),
    MasterMetric("cut_turns", "counter", "Times that a connection had more to ask than one turn"),
    MasterMetric("refused", "counter", "Connections that did not know the secret"),
    MasterMetric("malformed", "counter", "Connections closed for what made no sense"),
    MasterMetric("stalled", "counter", "Connections closed because nobody read their replies"),
)


class _Collector(Collector):
    def __init__(self, stats: Mapping[str, int], members: Sequence[Mapping[str, Any]]) -> None:
        self._stats, self._members = stats, members

    def collect(self) -> Iterator[Metric]:
        for metric in MASTER_METRICS:
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            yield family(PREFIX + metric.stat, metric.help, value=self._stats[metric.stat])
        for name, key, text in (
            ("node_ssd_size_bytes", "ssd_size_bytes", "What pages on a node's SSDs may take"),
            ("node_ssd_used_bytes", "ssd_used_bytes", "What of it is in use"),
            ("node_pages", "pages", "Pages that a node has"),
            ("node_capacity_bytes", "capacity_bytes", "Size of a node's memory for pages"),
            ("node_free_bytes", "free_bytes", "What of it no page uses"),
        ):
            by_node = GaugeMetricFamily(PREFIX + name, text, labels=["node", "state"])
            for member in self._members:
                by_node.add_metric([member["name"], member["state"]], member[key])
            yield by_node
        for name, text in (
            ("found_pages", "Pages looked up at a node and found, anywhere"),
            ("missed_pages", "Pages looked up at a node and found nowhere"),
            ("read_bytes", "Bytes of pages handed out by a node"),
            ("ssd_read_bytes", "Bytes of them that came from its SSDs"),
            ("remote_read_bytes", "Bytes that a node read from others"),
            ("evicted_pages", "Pages that left a node's memory"),
        ):
            counted = CounterMetricFamily(f"{PREFIX}node_{name}", text, labels=["node"])
            for member in self._members:
                counted.add_metric([member["name"]], member[name])
            yield counted
        yield from self._originals()

    def _originals(self) -> Iterator[Metric]:
        alive = [one for one in self._members if one["state"] != "gone"]
        capacity = sum(one["capacity_bytes"] for one in alive)
        free = sum(one["free_bytes"] for one in alive)
        for name, text, value in (
            ("master_allocated_bytes", "Bytes that pages use, on all nodes", capacity - free),
            ("master_total_capacity_bytes", "Memory for pages, of all nodes", capacity),
            ("master_key_count", "Pages known", self._stats["pages"]),
            ("master_active_clients", "Nodes that are there", len(alive)),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def master_metrics_text(stats: Mapping[str, int], members: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the metrics of one reading in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats, members))
    return generate_latest(registry)
