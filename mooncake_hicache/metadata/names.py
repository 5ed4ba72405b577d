"""Addresses (`host:port`) and the names that engines go by."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from mooncake_hicache.errors import InvalidArgumentError

__all__ = ["NAME_SIZE_MAX", "Address", "check_name", "is_loopback", "parse_address"]

NAME_SIZE_MAX = 255

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")


@dataclass(frozen=True)
class Address:
    """Where something listens."""

    host: str
    """A name or an address, without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address, without brackets, reaches this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str, *, what: str = "address", port: int | None = None) -> Address:
    """Read `host:port`, `10.0.0.1:15001` or `[fd00::1]:15001`.

    Args:
        text: The address.
        what: What the messages call it.
        port: The port of an address that names none. None: it must.

    Raises:
        InvalidArgumentError: It is none of these; the message says what is wrong.
    """

    def wrong(why: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"the {what} {text!r:.300} is not host:port: {why}; 10.0.0.1:15001 and "
            "[fd00::1]:15001 are"
        )

    match = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text, re.DOTALL)
    if match:
        host, digits = match.group(1), match.group(2)
        if not _is_ipv6(host):
            raise wrong(f"{host!r:.100} in brackets is no IPv6 address")
    else:
        host, colon, rest = text.rpartition(":")
        host, digits = (host, rest) if colon else (text, None)
        if ":" in host:
            raise wrong("an IPv6 address stands in brackets")
        if not _HOST.fullmatch(host):
            raise wrong(f"{host!r:.100} is no host")
    if digits is None:
        if port is None:
            raise wrong("the port is missing")
        return Address(host, port)
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not 1 <= int(digits) <= 65535:
        raise wrong(f"{digits!r:.40} is no port from 1 to 65535")
    return Address(host, int(digits))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def check_name(name: str) -> str:
    """Return a name that an engine can go by.

    Raises:
        InvalidArgumentError: It is empty, too long, or has characters that cannot be printed.
    """
    size = len(name.encode(errors="replace"))
    if not 0 < size <= NAME_SIZE_MAX or not name.isprintable() or name != name.strip():
        raise InvalidArgumentError(
            f"the name {name!r:.300} cannot be an engine's: 1 to {NAME_SIZE_MAX} bytes of text "
            "that can be printed, without space around it"
        )
    return name
