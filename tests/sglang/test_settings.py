"""The original's configuration is understood, and mistakes are named."""

from __future__ import annotations

import json

import pytest

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.sglang.settings import (
    CONFIG_PATH_VARIABLE,
    ORIGINAL_OPTIONS,
    read_settings,
)

GIB = 1 << 30


def test_nothing_configured_is_the_embedded_node():
    settings = read_settings(None, {})
    assert settings.warnings == ()
    assert (settings.tenant, settings.tag, settings.weight_version) == ("default", None, None)
    assert settings.options.source_of("pool_size") == "default"


def test_own_options_stand_in_their_table():
    settings = read_settings(
        {"mooncake_hicache": {"pool_size": "64MiB", "weight_version": 7, "call_timeout_ms": "2s"}},
        {},
    )
    assert settings.options.pool_size == "64MiB"
    assert settings.options.call_timeout_ms == 2000
    assert settings.weight_version == "7"


def test_weight_version_and_tag_may_stand_outside():
    settings = read_settings({"weight_version": "v2", "extra_backend_tag": "blue"}, {})
    assert (settings.weight_version, settings.tag) == ("v2", "blue")


def test_options_that_belong_to_the_engine_pass():
    engine = {"prefetch_threshold": 16, "interface_v1": 1, "tp_lcm_size": 8, "module_path": "m"}
    assert read_settings(engine, {}).warnings == ()


@pytest.mark.parametrize(
    ("value", "size"), [("4gb", 4 * GIB), ("64 GB", 64 * GIB), (GIB, GIB), (str(GIB), GIB)]
)
def test_segment_size_becomes_the_pools_size(value, size):
    settings = read_settings({"global_segment_size": value}, {})
    assert settings.options.pool_size_bytes is not None
    assert int(settings.options.pool_size) == size


def test_own_pool_size_wins_over_the_segment_size(monkeypatch):
    extra = {"global_segment_size": "4gb", "mooncake_hicache": {"pool_size": "1GiB"}}
    assert read_settings(extra, {}).options.pool_size == "1GiB"
    monkeypatch.setenv("MOONCAKE_HICACHE_POOL_SIZE", "2GiB")
    environ = {"MOONCAKE_HICACHE_POOL_SIZE": "2GiB", "MOONCAKE_GLOBAL_SEGMENT_SIZE": "4gb"}
    assert read_settings({}, environ).options.pool_size == "2GiB"


def test_environment_of_the_original_is_read():
    environ = {"MOONCAKE_GLOBAL_SEGMENT_SIZE": "2gb", "MOONCAKE_TENANT_ID": "team"}
    settings = read_settings({}, environ)
    assert (int(settings.options.pool_size), settings.tenant) == (2 * GIB, "team")


def test_puts_leave_most_threads_to_the_engine():
    own = {"copy_threads": 12}
    assert read_settings({"mooncake_hicache": own}, {}).options.put_copy_thread_count() == 3
    assert (
        read_settings({"mooncake_hicache": {"copy_threads": 2}}, {}).options.put_copy_threads == 1
    )
    own = {**own, "put_copy_threads": 12}
    assert read_settings({"mooncake_hicache": own}, {}).options.put_copy_thread_count() == 12


def test_file_of_the_original_hides_the_environment(tmp_path):
    file = tmp_path / "mooncake.json"
    file.write_text(json.dumps({"global_segment_size": "3gb", "mode": "x", "tenant_id": None}))
    environ = {CONFIG_PATH_VARIABLE: str(file), "MOONCAKE_TENANT_ID": "team"}
    settings = read_settings({"extra_backend_tag": "t"}, environ)
    assert (int(settings.options.pool_size), settings.tenant) == (3 * GIB, "default")
    (warning,) = settings.warnings
    assert "mode" in warning
    assert str(file) in warning


def test_extra_config_with_a_server_hides_file_and_environment(tmp_path):
    environ = {
        CONFIG_PATH_VARIABLE: str(tmp_path / "missing.json"),
        "MOONCAKE_TENANT_ID": "team",
    }
    settings = read_settings({"master_server_address": "host:50051", "protocol": "rdma"}, environ)
    assert settings.tenant == "default"
    assert settings.options.master == "host:50051"
    assert settings.warnings == ()


def test_a_server_of_the_original_becomes_the_master_of_a_cluster():
    environ = {"MOONCAKE_MASTER": "10.0.0.1:50051;10.0.0.2:50051"}
    options = read_settings({}, {**environ, "MOONCAKE_LOCAL_HOSTNAME": "localhost"}).options
    assert options.master == "10.0.0.1:50051,10.0.0.2:50051"
    assert (options.node_host, options.node_public_host) == ("", "")
    options = read_settings({}, {**environ, "MOONCAKE_LOCAL_HOSTNAME": "10.0.0.7:1234"}).options
    assert (options.node_host, options.node_public_host) == ("0.0.0.0", "10.0.0.7")
    options = read_settings({}, {**environ, "MOONCAKE_LOCAL_HOSTNAME": "[fd00::7]:1234"}).options
    assert (options.node_host, options.node_public_host) == ("::", "fd00::7")


def test_own_options_come_before_those_of_the_original(monkeypatch):
    environ = {"MOONCAKE_MASTER": "10.0.0.1:50051"}
    own = {"mooncake_hicache": {"master": "10.0.0.9:50051"}}
    assert read_settings(own, environ).options.master == "10.0.0.9:50051"
    monkeypatch.setenv("MOONCAKE_HICACHE_MASTER", "10.0.0.8:50051")
    assert read_settings({}, environ).options.master == "10.0.0.8:50051"


def test_a_master_that_etcd_should_name_is_told_to_be_named():
    settings = read_settings({"master_server_address": "etcd://10.0.0.5:2379"}, {})
    assert settings.options.master == ""
    (warning,) = settings.warnings
    assert "etcd://10.0.0.5:2379" in warning
    assert "host:port" in warning


def test_what_has_no_counterpart_is_named_once():
    extra = {"master_server_address": "h:1", "metadata_server": "http://h:8080/metadata"}
    (warning,) = read_settings({**extra, "device_name": "mlx5_0"}, {}).warnings
    assert "metadata_server" in warning
    assert "MOONCAKE_HICACHE_TRANSFER_RDMA_DEVICES" in warning


def test_values_that_ask_for_nothing_give_no_warning():
    extra = {
        "metadata_server": "P2PHANDSHAKE",
        "device_name": "",
        "check_server": False,
        "enable_ssd_offload": False,
        "local_hostname": "localhost",
    }
    assert read_settings(extra, {}).warnings == ()


def test_a_folder_for_ssd_offload_is_where_pages_go(monkeypatch):
    monkeypatch.delenv("MOONCAKE_HICACHE_SSD", raising=False)
    settings = read_settings({"ssd_offload_path": "/ssd", "enable_ssd_offload": True}, {})
    assert (settings.options.ssd, settings.warnings) == ("/ssd", ())
    settings = read_settings({"ssd_offload_path": "/ssd"}, {})
    assert settings.options.ssd == "auto"
    (warning,) = settings.warnings
    assert "enable_ssd_offload" in warning


@pytest.mark.parametrize("name", [*ORIGINAL_OPTIONS, "weight_version"])
def test_name_with_a_typing_error_is_refused_with_the_nearest(name):
    wrong = name[:-1] + "x"
    with pytest.raises(InvalidArgumentError, match=f"unknown option {wrong}.*{name}"):
        read_settings({wrong: 1}, {})


def test_own_option_in_the_wrong_place_is_told_its_place():
    with pytest.raises(InvalidArgumentError, match=r'pool_size.*\{"mooncake_hicache"'):
        read_settings({"pool_size": "1GiB"}, {})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"mooncake_hicache": "64GB"}, "mooncake_hicache"),
        ({"mooncake_hicache": {"poolsize": "64GB"}}, "pool_size"),
        ({"mooncake_hicache": {"pool_size": "64 potatoes"}}, "pool_size"),
        ({"global_segment_size": "4tb"}, "global_segment_size"),
        ({"global_segment_size": -1}, "global_segment_size"),
        ({"global_segment_size": True}, "global_segment_size"),
        ({"weight_version": ["a"]}, "weight_version"),
        ({"completely_else": 1}, "completely_else"),
    ],
)
def test_wrong_value_is_named(extra, named):
    with pytest.raises(InvalidArgumentError, match=named):
        read_settings(extra, {})


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_file_that_cannot_be_read_is_named(tmp_path, text):
    file = tmp_path / "mooncake.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"mooncake\.json"):
        read_settings({}, {CONFIG_PATH_VARIABLE: str(file)})


def test_longer_calls_than_an_engine_can_wait_for_are_cut_with_a_warning():
    settings = read_settings({"mooncake_hicache": {"call_timeout_ms": 30_000}}, {})
    assert settings.options.call_timeout_ms == 2000
    (warning,) = settings.warnings
    assert "call_timeout_ms 30000" in warning
    settings = read_settings({"mooncake_hicache": {"call_timeout_ms": 500}}, {})
    assert settings.options.call_timeout_ms == 500
    assert not settings.warnings
