"""Write configs/grafana.json: a dashboard of every metric that a node tells.

    python tools/grafana.py configs/grafana.json

Made from the metric table, so that a new metric has its place without more ado. Import the file in
Grafana (Dashboards, New, Import) and choose the Prometheus that scrapes the nodes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mooncake_hicache.metrics import NODE_METRICS, PREFIX, NodeMetric

WIDTH = 24  # Of a dashboard, in Grafana's columns.
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${source}"}
NODE = '{instance=~"$node"}'
UNITS = {"bytes": "bytes", "seconds": "s", "": "short"}
SECTIONS = {
    "": "What it saves",
    "lookup_": "Look-ups",
    "get_": "Gets",
    "put_": "Puts",
    "pool_": "Memory",
    "ssd_": "SSD",
    "remote_": "Other nodes",
    "cluster_": "Cluster",
    "other": "Everything else",
}
RATIOS = {
    "Hit rate of gets": ("get_hit_pages", "get_miss_pages"),
    "Hit rate of look-ups": ("lookup_hit_pages", "lookup_miss_pages"),
}
QUANTILES = (0.5, 0.99)


def rate(stat: str) -> str:
    """Return the query of how fast a counter grows."""
    return f"rate({PREFIX}{stat}_total{NODE}[$__rate_interval])"


def panel(title: str, unit: str, queries: dict[str, str], about: str = "") -> dict[str, Any]:
    """Return a graph; `queries` by legend."""
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"expr": query, "legendFormat": legend, "refId": chr(ord("A") + i)}
            for i, (legend, query) in enumerate(queries.items())
        ],
    }


def panel_of(metric: NodeMetric) -> dict[str, Any]:
    """Return the graph of one line of the table."""
    unit = UNITS.get(metric.unit, "short")
    if metric.kind == "counter":
        per_second = "Bps" if metric.unit == "bytes" else "cps"
        query = rate(metric.name.removeprefix(PREFIX))
        return panel(f"{metric.help}, per second", per_second, {"{{instance}}": query})
    if metric.kind == "histogram":
        queries = {
            f"{{{{op}}}} p{100 * part:g}": f"histogram_quantile({part}, sum by (le, op) "
            f"(rate({metric.name}_bucket{NODE}[$__rate_interval])))"
            for part in QUANTILES
        }
        return panel(metric.help, unit, queries)
    legend = f"{{{{{metric.owner}}}}}" if metric.part else "{{instance}}"
    return panel(metric.help, unit, {legend: f"{metric.name}{NODE}"})


def ratio_panels() -> Iterable[dict[str, Any]]:
    """What the table's counters say together."""
    for title, (hit, miss) in RATIOS.items():
        hits, misses = (f"sum({rate(stat)})" for stat in (hit, miss))
        yield panel(title, "percentunit", {"all nodes": f"{hits} / ({hits} + {misses})"})


def section_of(metric: NodeMetric) -> str:
    """Return the section that a metric belongs to."""
    return next((p for p in SECTIONS if p and metric.stat.startswith(p)), "other")


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    by_section: dict[str, list[dict[str, Any]]] = {prefix: [] for prefix in SECTIONS}
    by_section[""] = list(ratio_panels())
    for metric in NODE_METRICS:
        if metric.kind != "info":
            by_section[section_of(metric)].append(panel_of(metric))
    panels: list[dict[str, Any]] = []
    top = 0
    for prefix, graphs in by_section.items():
        if not graphs:
            continue
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": SECTIONS[prefix], "gridPos": place, "panels": []})
        top += 1
        width = WIDTH // min(3, len(graphs))
        per_row = WIDTH // width
        for i, graph in enumerate(graphs):
            y = top + i // per_row * HEIGHT
            graph["gridPos"] = {"x": i % per_row * width, "y": y, "w": width, "h": HEIGHT}
            panels.append(graph)
        top += -(-len(graphs) // per_row) * HEIGHT
    for number, one in enumerate(panels):
        one["id"] = number + 1
    return {
        "title": "mooncake-hicache nodes",
        "uid": "mooncake-hicache-nodes",
        "tags": ["mooncake-hicache"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [*_variables()]},
        "panels": panels,
    }


def _variables() -> Iterable[dict[str, Any]]:
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    yield {
        "name": "node",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({PREFIX}uptime_seconds, instance)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """Return the file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
