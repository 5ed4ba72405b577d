"""The kinds of values that options take: how people write them, and what is refused.

Each value stays as it was written, checked, so that `config` can show it; what it comes to on this
machine is worked out where it is used. Paths alone are rewritten, to absolute ones.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.units import format_size, parse_duration_ms, parse_percent, parse_size

__all__ = [
    "POOL_SIZE_MIN_BYTES",
    "SSD_SIZE_MIN_BYTES",
    "TOPOLOGY_AUTO",
    "Budget",
    "DiskShare",
    "Masters",
    "Milliseconds",
    "Path_",
    "PoolSize",
    "PoolSizeMax",
    "Ports",
    "RegionSize",
    "Seconds",
    "SliceSize",
    "SsdPlaces",
    "SsdSize",
    "TenantQuotas",
    "TopologyPath",
    "Transports",
    "absolute_path",
    "lower_case",
    "port_range",
    "size_bytes",
    "ssd_places",
    "tenant_name",
    "tenant_quotas",
]

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
POOL_SIZE_MIN_BYTES = 1 * MiB
POOL_PERCENT_MAX = 90.0
SSD_SIZE_MIN_BYTES = 64 * MiB
REGION_SIZE_MIN_BYTES = 1 * MiB
REGION_SIZE_MAX_BYTES = 4 * GiB
REGION_SIZE_UNIT_BYTES = 64 * KiB
SLICE_SIZE_MIN_BYTES = 4 * KiB
PORT_MAX = 65535
TENANT_NAME_SIZE_MAX = 256
QUOTAS_MAX = 1024
TRANSPORTS = ("local", "rdma", "tcp")
TOPOLOGY_AUTO = "auto"
_TRANSPORTS_EXAMPLE = 'write some of "local,rdma,tcp"'


def absolute_path(value: object) -> object:
    """Return a path as an absolute one, anything else as it is."""
    # The node runs in another folder than whoever starts it, so a relative path would change
    # meaning.
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or value.startswith("@"):
        return value
    return str(Path(value).expanduser().absolute())


def lower_case(value: object) -> object:
    """Return text in lower case and stripped, anything else as it is."""
    return value.strip().lower() if isinstance(value, str) else value


def size_bytes(text: str) -> int:
    """Return the bytes of a size that an option holds: `"64GB"`, or digits alone."""
    return parse_size(int(text) if text.isdigit() else text)


def ssd_places(text: str) -> list[tuple[str, str]]:
    """Return (directory, limit) of each directory that the option `ssd` names.

    The limit is as it was written, empty where there is none. Nothing for "auto" and "off".
    """
    if text in ("auto", "off"):
        return []
    return [_place(item) for item in text.split(",")]


def tenant_name(name: str) -> str:
    """Return a tenant's name, as quotas name it.

    Raises:
        InvalidArgumentError: It is empty, too long, or has control characters.
    """
    if not 0 < len(name.encode(errors="replace")) <= TENANT_NAME_SIZE_MAX:
        raise InvalidArgumentError(
            f"{name!r:.300} is no tenant: give a name of 1 to {TENANT_NAME_SIZE_MAX} bytes"
        )
    if any(ord(character) < ord(" ") or character == "\x7f" for character in name):
        raise InvalidArgumentError(f"{name!r} is no tenant: it has control characters")
    return name


def tenant_quotas(text: str) -> dict[str, str]:
    """Return the size or share of each tenant that the option `quotas` names."""
    parts = [item.rpartition("=") for item in text.split(",") if item]
    return {name: size for name, _, size in parts}


def _seconds(value: float | str) -> int:
    # Rounded up: 0 often means "never", and "500ms" must not.
    return math.ceil(parse_duration_ms(value, 1000) / 1000)


def _size_or_percent(value: object, whole: str, percent_max: float, example: str) -> str:
    percent = parse_percent(value)
    if percent is not None:
        if not 0 < percent <= percent_max:
            raise InvalidArgumentError(
                f"{value!r} is not between 0% and {percent_max:.0f}% {whole}"
            )
        return str(value)
    # Booleans are integers too, and no sizes.
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise InvalidArgumentError(f"{value!r} is not a size: write {example}")
    try:
        parse_size(value)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f'{error}, or a share {whole} ("25%")') from None
    return str(value)


def _pool_size(value: object) -> str:
    text = _size_or_percent(
        value, "of the available memory", POOL_PERCENT_MAX, '"64GB", "512MiB" or "25%"'
    )
    if parse_percent(text) is None and size_bytes(text) < POOL_SIZE_MIN_BYTES:
        raise InvalidArgumentError(
            f"{value!r} is below the least pool of {format_size(POOL_SIZE_MIN_BYTES)}; "
            'write a unit, as in "64GB"'
        )
    return text


def _pool_size_max(value: object) -> str:
    return "" if value == "" else _pool_size(value)


def _ssd_size(value: object) -> str:
    if lower_case(value) == "auto":
        return "auto"
    text = _size_or_percent(value, "of the free space", 100.0, '"auto", "2TB", "500GB" or "50%"')
    if parse_percent(text) is None and size_bytes(text) < SSD_SIZE_MIN_BYTES:
        raise InvalidArgumentError(
            f"{value!r} is below the least size on SSD of {format_size(SSD_SIZE_MIN_BYTES)}; "
            'write a unit, as in "500GB"; ssd = "off" turns it off'
        )
    return text


def _disk_share(value: object) -> str:
    return _size_or_percent(value, "of the file system", 90.0, '"5%" or "100GB"')


def _budget(value: object) -> str:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise InvalidArgumentError(f'{value!r} is not a size: write bytes per day, "2TB", or "0"')
    text = str(value).strip()
    size_bytes(text)
    return text


def _region_size(value: object) -> str:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise InvalidArgumentError(f'{value!r} is not a size: write "256MiB"')
    text = str(value).strip()
    size = size_bytes(text)
    if not REGION_SIZE_MIN_BYTES <= size <= REGION_SIZE_MAX_BYTES or size % REGION_SIZE_UNIT_BYTES:
        raise InvalidArgumentError(
            f"{value!r} is no size of a region: write a multiple of "
            f"{format_size(REGION_SIZE_UNIT_BYTES)} between {format_size(REGION_SIZE_MIN_BYTES)} "
            f'and {format_size(REGION_SIZE_MAX_BYTES)}, as in "256MiB"'
        )
    return text


def _slice_size(value: object) -> str:
    text = _budget(value)
    size = size_bytes(text)
    if size and not SLICE_SIZE_MIN_BYTES <= size <= REGION_SIZE_MAX_BYTES:
        raise InvalidArgumentError(
            f"{value!r} is no size of a slice: write one between "
            f"{format_size(SLICE_SIZE_MIN_BYTES)} and {format_size(REGION_SIZE_MAX_BYTES)}, or 0"
        )
    return text


def _ports(value: object) -> str:
    text = str(value).strip()
    first, dash, last = (part.strip() for part in text.partition("-"))
    ends = [first, last] if dash else [first]
    if not all(end.isdigit() and int(end) <= PORT_MAX for end in ends) or int(ends[0]) > int(
        ends[-1]
    ):
        raise InvalidArgumentError(
            f'{value!r} is no port: write one ("15000"), a range ("12000-13000"), or 0 for any'
        )
    return "-".join(ends)


def port_range(ports: str) -> tuple[int, int]:
    """Return the first and the last port of an option of type `Ports`; (0, 0) for any."""
    first, _, last = ports.partition("-")
    return int(first), int(last or first)


def _transports(value: object) -> str:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise InvalidArgumentError(f"{value!r} names no transport: {_TRANSPORTS_EXAMPLE}")
    names = [str(item).strip().lower() for item in items if str(item).strip()]
    for name in names:
        if name not in TRANSPORTS:
            raise InvalidArgumentError(f"{name!r} is no transport: {_TRANSPORTS_EXAMPLE}")
    if not names:
        raise InvalidArgumentError(f"{value!r} names no transport: {_TRANSPORTS_EXAMPLE}")
    return ",".join(name for name in TRANSPORTS if name in names)


def _place(item: str) -> tuple[str, str]:
    path, equals, limit = item.rpartition("=")
    return (path, limit) if equals else (limit, "")


def _ssd_places(value: object) -> str:
    example = 'write "auto", "off", or directories: "/nvme0/kv=2TB,/nvme1/kv"'
    if isinstance(value, str):
        if lower_case(value) in ("auto", "off"):
            return str(lower_case(value))
        items: list[object] = [item for item in value.split(",") if item.strip()]
    elif isinstance(value, (list, tuple)):
        items = list(value)
    else:
        raise InvalidArgumentError(f"{value!r} names no directory: {example}")
    places: dict[str, str] = {}
    for item in items:
        if not isinstance(item, (str, os.PathLike)):
            raise InvalidArgumentError(f"{item!r} names no directory: {example}")
        path, limit = _checked_place(os.fspath(item).strip(), example)
        if path in places:
            raise InvalidArgumentError(f"{path} is named twice: name each directory once")
        places[path] = limit
    if not places:
        raise InvalidArgumentError(f"{value!r} names no directory: {example}")
    return ",".join(f"{path}={limit}" if limit else path for path, limit in places.items())


def _checked_place(item: str, example: str) -> tuple[str, str]:
    path, limit = (part.strip() for part in _place(item))
    # A word such as "yes" must not become a directory below wherever this is started.
    if not path.startswith(("/", "~", ".")):
        raise InvalidArgumentError(f"{item!r} names no directory: {example}")
    if "," in path:
        raise InvalidArgumentError(
            f"{item!r}: a directory's path with a comma cannot be told from two; name a link to it"
        )
    if limit:
        try:
            limit = _ssd_size(limit)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"{item!r}: {error} (after the last =, which a path may only have if a size "
                "follows it)"
            ) from None
    return str(absolute_path(path)), limit


def _tenant_quotas(value: object) -> str:
    example = 'write "acme=200GB,*=5%"'
    if isinstance(value, dict):
        pairs = [(str(name), size) for name, size in value.items()]
    elif isinstance(value, str):
        items = [item.strip() for item in value.split(",") if item.strip()]
        pairs = []
        for item in items:
            name, equals, size = item.rpartition("=")
            if not equals:
                raise InvalidArgumentError(f"{item!r} gives no tenant a size: {example}")
            pairs.append((name.strip(), size.strip()))
    else:
        raise InvalidArgumentError(f"{value!r} gives no tenant a size: {example}")
    quotas: dict[str, str] = {}
    for name, size in pairs:
        if "," in tenant_name(name):
            raise InvalidArgumentError(
                f"the tenant {name!r} has a comma: give it its quota at the master"
            )
        if name in quotas:
            raise InvalidArgumentError(f"the tenant {name!r} is named twice: name each once")
        quotas[name] = _size_or_percent(size, "of the pool", 100.0, '"200GB" or "10%"')
        if parse_percent(quotas[name]) is None and size_bytes(quotas[name]) == 0:
            raise InvalidArgumentError(f"{name!r} may use nothing: give more than 0 bytes")
    if len(quotas) > QUOTAS_MAX:
        raise InvalidArgumentError(f"{len(quotas)} tenants have a quota: at most {QUOTAS_MAX} may")
    return ",".join(f"{name}={size}" for name, size in quotas.items())


def _masters(value: object) -> str:
    """Addresses with commas between them, or a list of them; spaces do not count."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return ",".join(str(part).strip() for part in parts)


Path_ = Annotated[str, BeforeValidator(absolute_path)]
TopologyPath = Annotated[
    str, BeforeValidator(lambda value: value if value == TOPOLOGY_AUTO else absolute_path(value))
]
Masters = Annotated[str, BeforeValidator(_masters)]
Milliseconds = Annotated[int, BeforeValidator(parse_duration_ms)]
Seconds = Annotated[int, BeforeValidator(_seconds)]
PoolSize = Annotated[str, BeforeValidator(_pool_size)]
PoolSizeMax = Annotated[str, BeforeValidator(_pool_size_max)]
SsdPlaces = Annotated[str, BeforeValidator(_ssd_places)]
SsdSize = Annotated[str, BeforeValidator(_ssd_size)]
TenantQuotas = Annotated[str, BeforeValidator(_tenant_quotas)]
DiskShare = Annotated[str, BeforeValidator(_disk_share)]
Budget = Annotated[str, BeforeValidator(_budget)]
RegionSize = Annotated[str, BeforeValidator(_region_size)]
SliceSize = Annotated[str, BeforeValidator(_slice_size)]
Ports = Annotated[str, BeforeValidator(_ports)]
Transports = Annotated[str, BeforeValidator(_transports)]
