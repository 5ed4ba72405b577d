"""`mooncake.mooncake_config.MooncakeConfig`: a store's settings from a JSON file or the
environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mooncake_hicache.compat.store.settings import HTTP_PORT, TENANT, flag_of, segment_size_of

__all__ = ["DEFAULT_GLOBAL_SEGMENT_SIZE", "DEFAULT_LOCAL_BUFFER_SIZE", "MooncakeConfig"]

DEFAULT_GLOBAL_SEGMENT_SIZE = 3_355_443_200
DEFAULT_LOCAL_BUFFER_SIZE = 1 << 30

_ENVIRONMENT = {
    "local_hostname": "MOONCAKE_LOCAL_HOSTNAME",
    "metadata_server": "MOONCAKE_TE_META_DATA_SERVER",
    "global_segment_size": "MOONCAKE_GLOBAL_SEGMENT_SIZE",
    "local_buffer_size": "MOONCAKE_LOCAL_BUFFER_SIZE",
    "protocol": "MOONCAKE_PROTOCOL",
    "device_name": "MOONCAKE_DEVICE",
    "master_server_address": "MOONCAKE_MASTER",
    "enable_ssd_offload": "MOONCAKE_OFFLOAD_ENABLED",
    "ssd_offload_path": "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
    "tenant_id": "MOONCAKE_TENANT_ID",
    "enable_client_http_server": "MOONCAKE_ENABLE_CLIENT_HTTP_SERVER",
    "client_http_port": "MOONCAKE_CLIENT_HTTP_PORT",
}
# As SGLang calls it; the original's own name counts more.
_OTHER_ENVIRONMENT = {"enable_ssd_offload": "MOONCAKE_ENABLE_SSD_OFFLOAD"}


@dataclass
class MooncakeConfig:
    """What a store is set up with, under the names of the original's JSON files."""

    local_hostname: str
    metadata_server: str
    global_segment_size: int
    local_buffer_size: int
    protocol: str
    device_name: str
    master_server_address: str
    enable_ssd_offload: bool = False
    ssd_offload_path: str = ""
    tenant_id: str = TENANT
    enable_client_http_server: bool = False
    client_http_port: int = HTTP_PORT

    @staticmethod
    def from_file(file_path: str) -> MooncakeConfig:
        """Read a JSON file.

        Raises:
            ValueError: It is no JSON, a name that must be there is missing, or a size or a yes or
                no is none.
            OSError: It cannot be read.
        """
        with Path(file_path).open(encoding="utf-8") as file:
            given = json.load(file)
        if not isinstance(given, dict):
            raise ValueError(f"{file_path} has no object of JSON")
        for name in ("local_hostname", "metadata_server", "master_server_address"):
            if given.get(name) is None:
                raise ValueError(f"{file_path}: Missing required config field: {name}")
        return _config_of(given)

    @staticmethod
    def load_from_env() -> MooncakeConfig:
        """Read the file that MOONCAKE_CONFIG_PATH names, or else MOONCAKE_MASTER and so on.

        Raises:
            ValueError: Neither is set.
        """
        path = os.environ.get("MOONCAKE_CONFIG_PATH", "")
        if path:
            return MooncakeConfig.from_file(path)
        if not os.environ.get("MOONCAKE_MASTER"):
            # The first sentence is the original's, for those who look for it.
            raise ValueError(
                "Neither the environment variable 'MOONCAKE_CONFIG_PATH' nor 'MOONCAKE_MASTER' is "
                "set. Set MOONCAKE_MASTER to host:port, or MOONCAKE_CONFIG_PATH to a file"
            )
        given = {
            name: os.environ[variable]
            for name, variable in [*_OTHER_ENVIRONMENT.items(), *_ENVIRONMENT.items()]
            if os.environ.get(variable)
        }
        return _config_of(given)

    def changed(self, given: Mapping[str, str]) -> MooncakeConfig:
        """Return it with other values, as text.

        Raises:
            ValueError: A name is unknown, or a value is none of its kind.
        """
        names = [field.name for field in fields(self)]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
        return _config_of({**asdict(self), **given})

    def setup_arguments(self) -> dict[str, Any]:
        """Return what `MooncakeDistributedStore.setup` is given."""
        return asdict(self)


def _config_of(given: Mapping[str, Any]) -> MooncakeConfig:
    # A null of JSON is as if the name were not there.
    given = {name: value for name, value in given.items() if value is not None}
    segment_size = given.get("global_segment_size", DEFAULT_GLOBAL_SEGMENT_SIZE)
    buffer_size = given.get("local_buffer_size", DEFAULT_LOCAL_BUFFER_SIZE)
    return MooncakeConfig(
        local_hostname=str(given.get("local_hostname", "localhost")),
        metadata_server=str(given.get("metadata_server", "P2PHANDSHAKE")),
        global_segment_size=segment_size_of(segment_size, "global_segment_size"),
        local_buffer_size=segment_size_of(buffer_size, "local_buffer_size"),
        protocol=str(given.get("protocol", "tcp")),
        device_name=str(given.get("device_name", "")),
        master_server_address=str(given["master_server_address"]),
        enable_ssd_offload=_flag(given, "enable_ssd_offload"),
        ssd_offload_path=str(given.get("ssd_offload_path", "")),
        tenant_id=str(given.get("tenant_id", TENANT)),
        enable_client_http_server=_flag(given, "enable_client_http_server"),
        client_http_port=int(given.get("client_http_port", HTTP_PORT)),
    )


def _flag(given: Mapping[str, Any], name: str) -> bool:
    return flag_of(given.get(name), name)
