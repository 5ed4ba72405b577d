"""`MooncakeConfig`: what files and environments of the original mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mooncake_hicache.compat.store.config import (
    DEFAULT_GLOBAL_SEGMENT_SIZE,
    DEFAULT_LOCAL_BUFFER_SIZE,
    MooncakeConfig,
)
from mooncake_hicache.compat.store.settings import segment_size_of

NEEDED = {"local_hostname": "a", "metadata_server": "b", "master_server_address": "c:1"}


def read(folder: Path, **given: Any) -> MooncakeConfig:
    path = folder / "config.json"
    path.write_text(json.dumps({**NEEDED, **given}), encoding="utf-8")
    return MooncakeConfig.from_file(str(path))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG_PATH", "MASTER", "ENABLE_SSD_OFFLOAD", "OFFLOAD_ENABLED"):
        monkeypatch.delenv(f"MOONCAKE_{name}", raising=False)


def test_null_in_a_file_is_as_if_the_name_were_not_there(tmp_path: Path) -> None:
    names = ["global_segment_size", "local_buffer_size", "protocol", "device_name"]
    names += ["enable_ssd_offload", "ssd_offload_path", "tenant_id", "client_http_port"]
    config = read(tmp_path, **dict.fromkeys(names))
    assert config == read(tmp_path)
    assert config.global_segment_size == DEFAULT_GLOBAL_SEGMENT_SIZE
    assert config.local_buffer_size == DEFAULT_LOCAL_BUFFER_SIZE
    assert (config.ssd_offload_path, config.tenant_id, config.device_name) == ("", "default", "")


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_what_must_be_there_is_named_if_it_is_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"Missing required config field: {name}"):
        read(tmp_path, **{name: None})


def test_a_yes_or_no_that_is_neither_is_an_error(tmp_path: Path) -> None:
    for yes in (True, 1, "1", "true", "Yes", " ON "):
        assert read(tmp_path, enable_ssd_offload=yes).enable_ssd_offload is True
    for no in (False, 0, "0", "false", "No", "off", ""):
        assert read(tmp_path, enable_ssd_offload=no).enable_ssd_offload is False
    for neither in ("ture", 2, [], {}):
        with pytest.raises(ValueError, match="enable_ssd_offload"):
            read(tmp_path, enable_ssd_offload=neither)


@pytest.mark.parametrize("name", ["MOONCAKE_OFFLOAD_ENABLED", "MOONCAKE_ENABLE_SSD_OFFLOAD"])
def test_either_name_in_the_environment_turns_the_ssd_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"MOONCAKE_CONFIG_PATH.*MOONCAKE_MASTER.*is set"):
        MooncakeConfig.load_from_env()
    monkeypatch.setenv("MOONCAKE_MASTER", "c:1")
    assert MooncakeConfig.load_from_env().enable_ssd_offload is False
    monkeypatch.setenv(name, "True")
    assert MooncakeConfig.load_from_env().enable_ssd_offload is True


def test_sizes_as_people_write_them() -> None:
    sizes: dict[Any, int] = {
        0: 0,
        1.5: 1,
        " 2048 ": 2048,
        "1.5": 1,
        "1e9": 10**9,
        "4096B": 4096,
        "512k": 512 << 10,
        "1.5kb": 1536,
        " 3 gb ": 3 << 30,
        "1t": 1 << 40,
        "2GiB": 2 << 30,
    }
    for text, size in sizes.items():
        assert segment_size_of(text) == size, text
    for none in ("", "  ", "gb", "b", "abc", "50%", "-1", "1e999", "nan", float("inf")):
        with pytest.raises(ValueError, match="the size of a segment"):
            segment_size_of(none)
