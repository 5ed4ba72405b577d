"""The options of a master; `config.py` has the others and says how they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mooncake_hicache.options_base import OptionsBase
from mooncake_hicache.options_types import Path_, Seconds

__all__ = ["MASTER_PORT", "MasterOptions"]

MASTER_PORT = 50051


class MasterOptions(OptionsBase):
    """What a master is started with. Immutable.

    In the environment the names begin with MOONCAKE_HICACHE_MASTER_, in a file with `master_`. Its
    secret and its TLS files are those of the transfer engine (`transfer_secret` …): a cluster has
    one secret.

    Raises (on construction):
        InvalidArgumentError: An option is unknown or does not fit, or the file cannot be read.

    Example:
        >>> MasterOptions(lease_ttl_s="4s").lease_ttl_s
        4
    """

    prefix: ClassVar[str] = "master_"

    if TYPE_CHECKING:  # Values come as people write them ("2s"), not as they are kept.

        def __init__(self, **values: Any) -> None: ...

    config: Path_ = ""
    """A TOML or JSON file of options. Empty: the one that MOONCAKE_HICACHE_CONFIG names, if any."""

    host: str = "127.0.0.1"
    """The address at which nodes reach the master. Loopback by default: a cluster says on which
    network ("0.0.0.0" or "::" for all), and gives all its machines one transfer_secret."""

    port: Annotated[int, Field(ge=0, le=65535)] = MASTER_PORT
    """The port at which nodes reach it. 0: any free one."""

    public_host: str = ""
    """What other masters and people are told to connect to. Empty: `host`, or this machine's
    address towards its default route if that means all addresses."""

    pages_max: Annotated[int, Field(ge=1, le=4_000_000_000)] = 200_000_000
    """Pages of all nodes that the directory keeps in mind, about 62 bytes each; what is more is
    told to nobody, and so missed elsewhere."""

    etcd: str = ""
    """etcd's endpoints, "host:port,host:port": of several masters that name the same ones one leads
    and the others stand by. Empty: this master is the only one, and leads at once."""

    cluster: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "default"
    """Which masters belong together, of those that share an etcd."""

    lease_ttl_s: Annotated[Seconds, Field(ge=2, le=60)] = 3
    """How long nobody leads, at most, after the leader has gone without a word. A leader that does
    not reach etcd for four fifths of it leads no longer."""

    http_host: str = "127.0.0.1"
    """The address of /metrics, of the page that shows the cluster, and of the original's paths."""

    http_port: Annotated[int, Field(ge=-1, le=65535)] = 9003
    """Its port. 0: any free one. -1: no HTTP."""

    token_file: Path_ = ""
    """A file whose first line must come with every request over HTTP that changes something
    (Authorization: Bearer). Empty: nothing can be changed over HTTP."""
