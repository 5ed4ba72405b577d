"""Without a server: an engine's name is its address; its epoch comes with the first greeting."""

from __future__ import annotations

from mooncake_hicache.metadata.entry import Entry, encode_entry
from mooncake_hicache.metadata.names import parse_address
from mooncake_hicache.metadata.protocol import TTL_S

__all__ = ["HANDSHAKE", "HandshakeMetadata"]

HANDSHAKE = "P2PHANDSHAKE"
"""What the original calls this."""


class HandshakeMetadata:
    """Finds an engine by the name `host:port`; see `Metadata`. Talks to nobody, never blocks."""

    def publish(self, name: str, entry: Entry, ttl_s: float = TTL_S) -> None:
        """Check the entry: nothing has to be made known."""
        encode_entry(entry)

    def resolve(self, name: str) -> Entry:
        """Return the address that the name is.

        Raises:
            InvalidArgumentError: It is none.
        """
        return Entry(str(parse_address(name, what="engine's name (with P2PHANDSHAKE)")))

    def withdraw(self, name: str) -> None:
        """Do nothing: what was never made known need not be withdrawn."""

    def close(self) -> None:
        """Do nothing."""
