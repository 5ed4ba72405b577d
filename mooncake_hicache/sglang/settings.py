"""What a server's configuration says about storage, in the names of this project and of Mooncake.

Options reach us on the ways that the original Mooncake store is configured:

1. `--hicache-storage-backend-extra-config`, a JSON object. Our own options stand in a table of
   their own, `{"mooncake_hicache": {"pool_size": "64GB"}, "weight_version": "7"}`;
2. the JSON file named by `SGLANG_HICACHE_MOONCAKE_CONFIG_PATH`;
3. the environment (`MOONCAKE_GLOBAL_SEGMENT_SIZE` and so on).

As in the original, extra config that names a server hides 2, and 2 hides 3. Of its options, those
that name the master, this machine and a folder for pages on SSD are taken as ours, where ours say
nothing; one warning names those that have no counterpart.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooncake_hicache.config import StoreOptions, environment_name
from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.metadata.names import is_loopback

__all__ = [
    "CONFIG_PATH_VARIABLE",
    "ORIGINAL_OPTIONS",
    "STORE_CALL_MAX_MS",
    "Settings",
    "read_settings",
]

STORE_CALL_MAX_MS = 2000
"""Milliseconds that one call into the store may take in an engine; see `transfer.Budget`."""

PUT_THREADS_DIVISOR = 4
"""Of the threads that copy for a get, one in so many copies for a put."""

CONFIG_PATH_VARIABLE = "SGLANG_HICACHE_MOONCAKE_CONFIG_PATH"

ORIGINAL_OPTIONS: dict[str, str | None] = {
    "local_hostname": "MOONCAKE_LOCAL_HOSTNAME",
    "metadata_server": "MOONCAKE_TE_META_DATA_SERVER",
    "global_segment_size": "MOONCAKE_GLOBAL_SEGMENT_SIZE",
    "protocol": "MOONCAKE_PROTOCOL",
    "device_name": "MOONCAKE_DEVICE",
    "master_server_address": "MOONCAKE_MASTER",
    "master_metrics_port": "MOONCAKE_MASTER_METRICS_PORT",
    "check_server": "MOONCAKE_CHECK_SERVER",
    "standalone_storage": "MOONCAKE_STANDALONE_STORAGE",
    "client_server_address": "MOONCAKE_CLIENT",
    "enable_ssd_offload": "MOONCAKE_ENABLE_SSD_OFFLOAD",
    "ssd_offload_path": "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
    "tenant_id": "MOONCAKE_TENANT_ID",
    # Only in extra config or in the file. Local buffers and group semantics have no counterpart:
    # pages are read in place, and a page is always whole.
    "local_buffer_size": None,
    "enable_group_semantics": None,
    "extra_backend_tag": None,
}
"""The original's options and the environment variable of each."""

_WITHOUT_EFFECT = {
    "client_server_address": "an engine speaks to the node of its machine",
    "standalone_storage": "pages are always kept by a process of their own, the node",
    "metadata_server": "nodes find each other through the master",
    "check_server": "an engine serves without the master too",
    "master_metrics_port": "`mooncake-hicache status` knows where",
    "device_name": f"{environment_name('transfer_rdma_devices')} names devices",
}
"""The original's options that are not needed here, and why."""

# SGLang takes most of these out before a backend sees them; a backend that is loaded by
# module path keeps them.
_ENGINE_OPTIONS = (
    "prefetch_threshold",
    "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token",
    "prefetch_timeout_max",
    "hicache_storage_pass_prefix_keys",
    "tp_lcm_size",
    "backend_name",
    "module_path",
    "class_name",
    "interface_v1",
    "allocator",
)
_OWN_TABLE = "mooncake_hicache"
_WEIGHT_VERSION = "weight_version"
_TENANT_DEFAULT = "default"
_SAYS_NOTHING = (None, "", False, 0, "0", "false", "False", "P2PHANDSHAKE", "localhost")


@dataclass(frozen=True)
class Settings:
    """A server's configuration, checked."""

    options: StoreOptions
    """How the store is opened, and a node started if there is none."""
    weight_version: str | None
    """Names the weights. Pages of other versions are not seen."""
    tenant: str
    """Pages of other tenants are not seen."""
    tag: str | None
    """`extra_backend_tag`: one more name that keeps pages apart."""
    warnings: tuple[str, ...]
    """What should be logged, once."""


def read_settings(
    extra_config: Mapping[str, object] | None, environ: Mapping[str, str]
) -> Settings:
    """Return the settings of a server.

    Args:
        extra_config: the JSON object of `--hicache-storage-backend-extra-config`, or None.
        environ: the environment variables.

    Raises:
        InvalidArgumentError: An option is not known or does not fit, or the file cannot be read;
            the message names it and the remedy.
    """
    extra = dict(extra_config or {})
    _check_names(extra)
    original, warnings = _original_options(extra, environ)
    for key in ("extra_backend_tag", _WEIGHT_VERSION):
        value = extra.get(key)
        if value is not None and not isinstance(value, (str, int)):
            raise InvalidArgumentError(f"extra config: {key} is {value!r}; write a string")
    own = _table(extra.get(_OWN_TABLE))
    weight_version = _text(own.pop(_WEIGHT_VERSION, extra.get(_WEIGHT_VERSION)))
    options = StoreOptions(**own)
    taken, notices = _as_ours(original)
    warnings = [*warnings, *notices]
    options = options.replaced(
        **{name: value for name, value in taken.items() if options.source_of(name) == "default"}
    )
    if options.call_timeout_ms > STORE_CALL_MAX_MS:
        warnings = [
            *warnings,
            f"call_timeout_ms {options.call_timeout_ms}: an engine waits for its storage for at "
            f"most {STORE_CALL_MAX_MS} ms, taken as that",
        ]
        options = options.replaced(call_timeout_ms=STORE_CALL_MAX_MS)
    if not options.put_copy_threads:
        # Nobody waits for a put, and the engine computes beside it: it needs CPUs and the memory's
        # bandwidth more.
        few = max(1, options.copy_thread_count() // PUT_THREADS_DIVISOR)
        options = options.replaced(put_copy_threads=few)
    return Settings(
        options=options,
        weight_version=weight_version,
        tenant=_text(original.get("tenant_id")) or _TENANT_DEFAULT,
        tag=_text(extra.get("extra_backend_tag")),
        warnings=(*warnings, *_without_effect(original)),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _check_names(extra: Mapping[str, object]) -> None:
    known = [*ORIGINAL_OPTIONS, *_ENGINE_OPTIONS, _OWN_TABLE, _WEIGHT_VERSION]
    for name in extra:
        if name in known:
            continue
        if name in StoreOptions.model_fields:
            hint = f'write {{"{_OWN_TABLE}": {{"{name}": ...}}}}'
        else:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise InvalidArgumentError(
            f"unknown option {name} in --hicache-storage-backend-extra-config: {hint}"
        )


def _table(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(
            f'extra config: {_OWN_TABLE} is {value!r}; write a table: {{"pool_size": "64GB"}}'
        )
    return dict(value)


def _original_options(
    extra: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[dict[str, object], list[str]]:
    """Return the original's options that are in effect, and warnings about their source."""
    explicit = {name: extra[name] for name in ORIGINAL_OPTIONS if extra.get(name) is not None}
    if "master_server_address" in explicit or "client_server_address" in explicit:
        return explicit, []
    path = environ.get(CONFIG_PATH_VARIABLE)
    if path:
        from_file = _read_file(path)
        unknown = sorted(set(from_file) - set(ORIGINAL_OPTIONS))
        warnings = (
            [f"{path} ({CONFIG_PATH_VARIABLE}): {', '.join(unknown)} not known here, no effect"]
            if unknown
            else []
        )
        return {**from_file, **explicit}, warnings
    from_environment = {
        name: environ[variable]
        for name, variable in ORIGINAL_OPTIONS.items()
        if variable and environ.get(variable)
    }
    return {**from_environment, **explicit}, []


def _read_file(path: str) -> dict[str, object]:
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read {path}, named by {CONFIG_PATH_VARIABLE}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise InvalidArgumentError(
            f"{path}, named by {CONFIG_PATH_VARIABLE}, is not valid JSON: {error}"
        ) from None
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{path}, named by {CONFIG_PATH_VARIABLE}, holds no JSON object")
    return {name: value for name, value in values.items() if value is not None}


def _segment_size_bytes(value: object) -> int:
    """Return a segment size in bytes: the original knows plain bytes and `4gb` (binary)."""
    if value is None:
        return 0
    if isinstance(value, str):
        gigabytes = re.fullmatch(r"\s*(\d+)\s*gb\s*", value, re.IGNORECASE)
        if gigabytes:
            return int(gigabytes.group(1)) << 30
        value = int(value) if value.strip().isdigit() else value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InvalidArgumentError(
        f'global_segment_size (MOONCAKE_GLOBAL_SEGMENT_SIZE) is {value!r}: write bytes or "64gb"'
    )


def _as_ours(original: Mapping[str, object]) -> tuple[dict[str, str], list[str]]:
    """Return those of the original's options that are options of ours, and what to warn of."""
    taken: dict[str, str] = {}
    warnings = []
    pool_size_bytes = _segment_size_bytes(original.get("global_segment_size"))
    if pool_size_bytes:
        taken["pool_size"] = str(pool_size_bytes)
    master = _said(original, "master_server_address")
    if "://" in master:
        warnings.append(
            f"master_server_address is {master}: no effect, pages are kept on this machine alone; "
            "give the masters themselves, host:port, several with commas"
        )
    elif master:
        taken["master"] = master.replace(";", ",")
        host = _host_of(_said(original, "local_hostname"))
        if host and not is_loopback(host):
            taken["node_public_host"] = host
            taken["node_host"] = "::" if ":" in host else "0.0.0.0"
    path = _said(original, "ssd_offload_path")
    if path and _said(original, "enable_ssd_offload"):
        taken["ssd"] = path
    elif path:
        warnings.append("ssd_offload_path: no effect without enable_ssd_offload")
    return taken, warnings


def _said(original: Mapping[str, object], name: str) -> str:
    """Return an option as text; empty if it says nothing."""
    value = original.get(name)
    return "" if value in _SAYS_NOTHING else str(value).strip()


def _host_of(text: str) -> str:
    """Return the host of "host", "host:port", "[v6]:port" or "v6", without brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _without_effect(original: Mapping[str, object]) -> list[str]:
    without = {name: why for name, why in _WITHOUT_EFFECT.items() if _said(original, name)}
    if not without:
        return []
    reasons = "; ".join(f"{name} ({why})" for name, why in without.items())
    return [f"without effect here: {reasons}"]
