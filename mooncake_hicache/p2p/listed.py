"""What the store tells of a name, gathered from its sources; and that for the command line."""

from __future__ import annotations

from dataclasses import dataclass

from mooncake_hicache.config import TransferOptions
from mooncake_hicache.p2p.catalogue import Catalogue, open_catalogue
from mooncake_hicache.p2p.records import Source, signing_key
from mooncake_hicache.secret import resolve_secret

__all__ = ["Listed", "list_names", "listed_of"]


@dataclass(frozen=True)
class Listed:
    """A name, and who has it."""

    name: str
    size_bytes: int
    generation: int
    """A later registration with other bytes has a greater one."""
    whole_count: int
    """Sources that have all of it."""
    partial_count: int
    """Readers that have some of it, and give that already."""
    owners: tuple[str, ...]
    """Host and process of the sources, whole ones first."""


def listed_of(sources: list[Source]) -> list[Listed]:
    """Return what these sources have, by name; of each name the newest generation only."""
    by_name: dict[str, list[Source]] = {}
    for source in sources:
        kept = by_name.setdefault(source.name, [])
        if kept and source.generation > kept[0].generation:
            kept.clear()
        if not kept or source.generation == kept[0].generation:
            kept.append(source)
    return [_listed(by_name[name]) for name in sorted(by_name)]


def _listed(sources: list[Source]) -> Listed:
    first = sources[0]
    ordered = sorted(sources, key=lambda source: (not source.is_whole, source.owner))
    whole_count = sum(source.is_whole for source in sources)
    return Listed(
        first.name,
        first.size_bytes,
        first.generation,
        whole_count,
        len(sources) - whole_count,
        tuple(source.owner for source in ordered),
    )


def list_names(
    metadata: str, prefix: str = "", *, cluster: str = "default", secret: str = ""
) -> tuple[list[Listed], int]:
    """Return what is in a catalogue, without a store, and how many entries do not count.

    Args:
        metadata: `etcd://host:port`.
        prefix: What names begin with.
        cluster: As the stores have it.
        secret: As the option `secret` of transfers; empty: what that option says.

    Raises:
        UnavailableError, TimeoutError_: etcd does not answer.
        InvalidArgumentError, UnsupportedError, IoError: An argument or the secret is none.
    """
    key = signing_key(resolve_secret(secret or TransferOptions().secret))
    sources, foreign_count = Catalogue(open_catalogue(metadata), key, cluster=cluster).list(prefix)
    return listed_of(sources), foreign_count
