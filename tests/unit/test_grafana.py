"""The dashboard shows every metric that a node tells, under the name by which it tells it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from mooncake_hicache import Store
from mooncake_hicache.metrics import NODE_METRICS, PREFIX, node_metrics_text

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "configs/grafana.json"


def _generator():
    spec = importlib.util.spec_from_file_location("grafana", ROOT / "tools/grafana.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _queried() -> set[str]:
    text = DASHBOARD.read_text(encoding="utf-8")
    queries = [t["expr"] for p in json.loads(text)["panels"] for t in p.get("targets", [])]
    return {name for query in queries for name in re.findall(rf"{PREFIX}\w+", query)}


def test_the_committed_dashboard_is_up_to_date() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == _generator().text(), "make stubs"


def test_every_metric_is_shown() -> None:
    shown = _queried()
    for metric in NODE_METRICS:
        if metric.kind != "info":
            names = {metric.name, f"{metric.name}_total", f"{metric.name}_bucket"}
            assert names & shown, metric.stat


def test_a_node_tells_what_is_asked_for() -> None:
    with Store.open(in_process=True, pool_size="64MiB") as store:
        stats = store.stats()["node"]
    assert stats is not None
    told = node_metrics_text(stats, "1")
    names = set(re.findall(rf"^({PREFIX}\w+)", told.decode(), re.MULTILINE))
    # Of a namespace there is nothing to tell before there is one, nor of a tenant.
    assert {name for name in _queried() if not re.search("_(namespace|tenant)_", name)} <= names


def test_no_two_graphs_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for one in _generator().dashboard()["panels"]:
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, one["title"]
        taken |= cells
