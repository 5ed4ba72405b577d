"""What `setup` is given: by place, by name or as a dict, as the original takes it."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.units import parse_size

__all__ = ["Setup", "flag_of", "segment_size_of", "setup_of"]

TENANT = "default"
STANDALONE = "MOONCAKE_ENABLE_STANDALONE"
SSD_FOLDER = "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH"
HTTP_PORT = 9300
PORT_MAX = 65535

_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}

_NAMES = (
    "local_hostname",
    "metadata_server",
    "global_segment_size",
    "local_buffer_size",
    "protocol",
    "rdma_devices",
    "master_server_addr",
    "engine",
    "enable_ssd_offload",
    "ssd_offload_path",
    "tenant_id",
    "enable_client_http_server",
    "client_http_port",
)
_NEEDED = 7
_ONLY_NAMED = ("enable_standalone", "enable_ssd_prefetch", "ssd_get_wait_ms")
"""What has no place among the others. The last two say how the original's SSD is waited for."""
_TEXTS = {"local_hostname", "metadata_server", "protocol", "rdma_devices", "master_server_addr"}
_OTHER_NAMES = {
    "device_name": "rdma_devices",
    "master_server_address": "master_server_addr",
    "ipc_socket_path": "ipc_socket_path",
}
"""What dicts may hold besides: the names that the original's JSON files have."""


@dataclass(frozen=True)
class Setup:
    """What a store is started with."""

    hostname: str
    master: str
    """Where it is; empty: there is none, and the node serves this machine alone."""
    segment_size: int
    protocol: str = "tcp"
    devices: str = ""
    ssd: str = ""
    tenant: str = TENANT
    http_port: int | None = None
    """Where the store answers over HTTP; None: nowhere."""


def setup_of(arguments: Sequence[Any], named: Mapping[str, Any]) -> Setup:
    """Sort the arguments of `setup`.

    Raises:
        TypeError: One is missing, unknown, given twice or of another type.
        InvalidArgumentError: A size in a dict is none.
    """
    is_dict = len(arguments) == 1 and isinstance(arguments[0], Mapping)
    if is_dict or (not arguments and set(named) == {"config"}):
        given = dict(arguments[0] if is_dict else named["config"])
        return _from_dict(given)
    if len(arguments) > len(_NAMES):
        raise TypeError(f"setup() takes {len(_NAMES)} arguments, {len(arguments)} were given")
    given = dict(zip(_NAMES, arguments, strict=False))
    for name, value in named.items():
        if name not in _NAMES + _ONLY_NAMED or name in given:
            known = ", ".join(_NAMES + _ONLY_NAMED)
            why = "was given twice" if name in given else f"is unknown: there are {known}"
            raise TypeError(f"setup(): the argument {name!r} {why}")
        given[name] = value
    # Some articles leave the devices out, so that the master stands in their place.
    if "master_server_addr" not in given and ":" in str(given.get("rdma_devices", "")):
        given["master_server_addr"] = given.pop("rdma_devices")
        given["rdma_devices"] = ""
    missing = [name for name in _NAMES[:_NEEDED] if name not in given]
    if missing:
        raise TypeError(f"setup(): missing arguments: {', '.join(missing)}")
    return _checked(given)


def _from_dict(given: dict[str, Any]) -> Setup:
    given = {_OTHER_NAMES.get(name, name): value for name, value in given.items()}
    names = _NAMES + _ONLY_NAMED
    unknown = sorted(set(given) - {*names, "ipc_socket_path"})
    if unknown:
        raise InvalidArgumentError(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
    if _is_alone(given):
        given.setdefault("master_server_addr", "")
    missing = [name for name in ("local_hostname", "master_server_addr") if name not in given]
    if missing:
        raise InvalidArgumentError(f"missing: {', '.join(missing)}")
    for name in ("global_segment_size", "local_buffer_size"):
        given[name] = segment_size_of(given.get(name, 0), name)
    for name in ("enable_ssd_offload", "enable_client_http_server"):
        if isinstance(given.get(name), str):
            given[name] = given[name].strip().lower() in ("1", "true", "yes", "on")
    defaults = {"metadata_server": "P2PHANDSHAKE", "protocol": "tcp", "rdma_devices": ""}
    return _checked({**defaults, **given})


def segment_size_of(value: Any, name: str = "the size of a segment") -> int:
    """Return a size in bytes: a number, or a text such as "16MB", where 1 MB is 2**20 bytes.

    Of a fraction of a byte ("1.5") the whole ones count; "1e9" is a number as well.

    Raises:
        InvalidArgumentError: It is none; shares of memory ("50%") are none either.
    """
    if not isinstance(value, str | float):
        return operator.index(value)
    # 16M is 16 MiB, and so is 16MB.
    text = str(value).strip().upper().removesuffix("IB").removesuffix("B").strip()
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?(E\+?[0-9]+)?", text) and not text.isdigit():
            number = float(text)
            if math.isfinite(number):
                return int(number)
        return parse_size(text)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{name}: {error}") from None


def flag_of(value: Any, name: str) -> bool:
    """Return whether a text, a number or a value of JSON says yes; null and nothing say no.

    Raises:
        InvalidArgumentError: It says neither.
    """
    text = "" if value is None else str(value).strip().lower()
    if text not in _YES | _NO:
        raise InvalidArgumentError(f"{name} is {value!r:.100}: give true or false")
    return text in _YES


def _checked(given: dict[str, Any]) -> Setup:
    for name in _TEXTS:
        if not isinstance(given[name], str):
            raise TypeError(f"setup(): {name} is {type(given[name]).__name__}, not a str")
    segment_size = operator.index(given["global_segment_size"])
    buffer_size = operator.index(given["local_buffer_size"])
    if segment_size < 0 or buffer_size < 0:
        raise TypeError("setup(): a size is negative")
    ssd = str(given.get("ssd_offload_path") or os.environ.get(SSD_FOLDER, ""))
    if given.get("enable_ssd_offload") and not ssd:
        raise InvalidArgumentError(
            f"enable_ssd_offload needs ssd_offload_path, or {SSD_FOLDER}: name a folder"
        )
    alone = _is_alone(given)
    if not alone and not given["master_server_addr"].strip():
        raise InvalidArgumentError(
            "master_server_addr is empty: give host:port, or enable_standalone for no master"
        )
    return Setup(
        hostname=given["local_hostname"],
        master="" if alone else given["master_server_addr"].strip(),
        segment_size=segment_size,
        protocol=given["protocol"].strip().lower(),
        devices=given["rdma_devices"].replace(" ", ""),
        ssd=ssd if given.get("enable_ssd_offload") else "",
        tenant=str(given.get("tenant_id") or TENANT),
        http_port=_http_port_of(given),
    )


def _is_alone(given: Mapping[str, Any]) -> bool:
    value = given.get("enable_standalone")
    if value is not None:
        return flag_of(value, "enable_standalone")
    return flag_of(os.environ.get(STANDALONE), STANDALONE)


def _http_port_of(given: Mapping[str, Any]) -> int | None:
    if not given.get("enable_client_http_server"):
        return None
    value = given.get("client_http_port", HTTP_PORT)
    text = value.strip() if isinstance(value, str) else str(operator.index(value))
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > PORT_MAX:
        raise InvalidArgumentError(f"client_http_port is {value!r:.100}: give 0 to {PORT_MAX}")
    return int(text)
