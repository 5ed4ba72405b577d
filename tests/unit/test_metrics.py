"""The table of metrics against what a node really counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mooncake_hicache import Store
from mooncake_hicache.metrics import (
    CLIENT_METRICS,
    CLIENT_PREFIX,
    NODE_METRICS,
    PREFIX,
    client_metrics_text,
    node_metrics_text,
)


@pytest.fixture(scope="module")
def all_stats() -> Iterator[dict[str, Any]]:
    with Store.open(in_process=True, pool_size="64MiB", quotas="*=50%") as store:
        pages = store.namespace("metrics")
        assert pages.put("page", b"x" * 5000)
        assert pages.get("page") is not None
        assert pages.get("other") is None
        found = store.stats()
        assert found["node"] is not None
        yield found


@pytest.fixture
def stats(all_stats: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = all_stats["node"]
    return node


def test_every_count_is_in_the_table_and_the_reverse(stats: dict[str, Any]) -> None:
    assert {metric.stat for metric in NODE_METRICS} == set(stats)


def test_names_are_unique_and_follow_one_pattern() -> None:
    names = [metric.name for metric in NODE_METRICS if metric.kind != "info"]
    assert len(names) == len(set(names))
    for name in names:
        assert re.fullmatch(PREFIX + "[a-z_]+", name)
        assert not name.endswith(("_total", "_ms", "_s"))
    for metric in NODE_METRICS:
        assert metric.kind == "info" or metric.name.endswith(metric.unit), metric


def test_prometheus_reads_what_is_written(stats: dict[str, Any]) -> None:
    families = {
        family.name: family
        for family in text_string_to_metric_families(node_metrics_text(stats, "1.2.3").decode())
    }
    for metric in NODE_METRICS:
        if metric.kind == "info":
            continue
        family = families.pop(metric.name)
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        if metric.part:
            # A namespace without a tenant in its description is one itself.
            assert [sample.labels[metric.owner] for sample in family.samples] == ["metrics"]
        elif metric.kind in ("gauge", "counter"):
            [sample] = family.samples
            assert sample.value == pytest.approx(stats[metric.stat] * metric.scale)
    [(name, family)] = families.items()
    assert name.startswith(PREFIX.rstrip("_"))
    labels = family.samples[0].labels
    assert labels["version"] == "1.2.3"
    assert labels["pid"] == str(stats["pid"])
    assert labels["eviction_policy"] == stats["eviction_policy"]


@pytest.mark.parametrize("stat", ["requests_seconds", "ssd_seconds"])
def test_a_histogram_is_cumulative_and_counts_everything(stat: str, stats: dict[str, Any]) -> None:
    families = text_string_to_metric_families(node_metrics_text(stats, "1").decode())
    [family] = [f for f in families if f.name == PREFIX + stat]
    operations = {sample.labels["op"] for sample in family.samples}
    assert operations == set(stats[stat])
    for operation in operations:
        samples = [s for s in family.samples if s.labels["op"] == operation]
        buckets = [s.value for s in samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == next(s.value for s in samples if s.name.endswith("_count"))
        assert buckets[-1] == sum(stats[stat][operation]["counts"])


def test_times_of_requests_and_of_the_ssd_are_counted(stats: dict[str, Any]) -> None:
    assert any(sum(h["counts"]) > 0 for h in stats["requests_seconds"].values())
    assert set(stats["ssd_seconds"]) == {"read", "write"}


def test_the_ssd_is_counted_in_seconds_and_named_by_its_units() -> None:
    by_stat = {metric.stat: metric for metric in NODE_METRICS}
    assert by_stat["ssd_recovery_ms"].name == PREFIX + "ssd_recovery_seconds"
    assert by_stat["ssd_recovery_ms"].scale == 0.001
    assert by_stat["ssd_eviction_age_s"].name == PREFIX + "ssd_eviction_age_seconds"
    assert by_stat["ssd_eviction_age_s"].scale == 1
    assert by_stat["eviction_age_ms"].name == PREFIX + "eviction_age_seconds"


def test_every_count_of_a_client_is_told(all_stats: dict[str, Any]) -> None:
    counts = all_stats["client"]
    assert set(CLIENT_METRICS) == set(counts)
    families = text_string_to_metric_families(client_metrics_text(counts).decode())
    told = {family.name: (family.type, family.samples[0].value) for family in families}
    kinds = {stat: "gauge" if stat == "connected" else "counter" for stat in counts}
    assert told == {CLIENT_PREFIX + stat: (kinds[stat], counts[stat]) for stat in counts}
    assert (counts["connected"], counts["put_pages"], counts["get_pages"]) == (True, 1, 2)
