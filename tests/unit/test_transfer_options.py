"""The transfer engine's options: their names, their sources, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooncake_hicache.config import NodeOptions, StoreOptions, TransferOptions
from mooncake_hicache.errors import InvalidArgumentError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MOONCAKE_HICACHE_")]:
        monkeypatch.delenv(name)


def test_every_option_has_a_reason() -> None:
    for name, field in TransferOptions.model_fields.items():
        assert field.description and len(field.description) > 30, name


def test_names_have_the_prefix_in_the_environment_and_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hicache.toml"
    file.write_text('transfer_tcp_lanes = 7\ntransfer_name = "file"\npool_size = "1GiB"\n')
    monkeypatch.setenv("MOONCAKE_HICACHE_CONFIG", str(file))
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_NAME", "environment")
    options = TransferOptions(timeout_ms="2s")
    assert (options.tcp_lanes, options.name, options.timeout_ms) == (7, "environment", 2000)
    assert options.source_of("tcp_lanes") == f"file {file}"
    assert options.source_of("name") == "environment MOONCAKE_HICACHE_TRANSFER_NAME"
    # Nodes and stores read the same file and environment.
    assert NodeOptions().pool_size == StoreOptions().pool_size == "1GiB"


def test_the_prefix_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hicache.toml"
    file.write_text("tcp_lanes = 7\n")
    with pytest.raises(InvalidArgumentError, match=r"mean transfer_tcp_lanes\?"):
        TransferOptions(config=str(file))
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_LANES", "3")
    with pytest.raises(InvalidArgumentError, match="TRANSFER_TCP_LANES"):
        TransferOptions()
    with pytest.raises(InvalidArgumentError, match="TRANSFER_TCP_LANES"):
        NodeOptions()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ports", "70000", "12000-13000"),
        ("ports", "2-1", "12000-13000"),
        ("ports", "a", "12000-13000"),
        ("transports", "tcp,smoke", "local,rdma,tcp"),
        ("transports", "", "local,rdma,tcp"),
        ("transports", 5, "local,rdma,tcp"),
        ("slice_size", "1", "4 KiB"),
        ("slice_size", "8GiB", "4 GiB"),
        ("batches_max", "0", "greater than or equal to 1"),
        ("timeout_ms", "soon", "500ms"),
    ],
)
def test_a_wrong_value_is_told(name: str, value: object, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"option transfer_{name} ") as caught:
        TransferOptions(**{name: value})
    assert told in str(caught.value)


def test_values_are_resolved() -> None:
    options = TransferOptions(ports="12000 - 13000", transports=["TCP", "local"], slice_size="1MiB")
    assert options.port_range() == (12000, 13000)
    assert TransferOptions(ports=0).port_range() == (0, 0)
    assert TransferOptions(ports="80").port_range() == (80, 80)
    assert options.transports == "local,tcp"
    assert options.slice_size_bytes() == 1 << 20
    assert 1 <= options.tcp_io_thread_count() <= 8
    assert 4 <= options.tcp_lane_count() <= 8
    assert TransferOptions(local_copy_threads=9).local_copy_thread_count() == 9
    assert options.replaced(name="other").ports == "12000-13000"
