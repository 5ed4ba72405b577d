"""Every option of the package: its unit, its default and the reason for it, written once.

A value is looked for in this order, and the first that is found wins:

1. an argument: `StoreOptions(pool_size="64GB")`, `mooncake-hicache node --pool-size 64GB`;
2. the environment: `MOONCAKE_HICACHE_POOL_SIZE=64GB`;
3. the file named by the option `config` (`MOONCAKE_HICACHE_CONFIG=/etc/hicache.toml`), TOML or
   JSON, one flat list of the same names: `pool_size = "64GB"`;
4. the default below.

A name that is not known, or a value that does not fit, is an `InvalidArgumentError` that names it,
says where it came from, and offers the nearest name or an example. `mooncake-hicache config` prints
the options in effect and the source of each.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from mooncake_hicache.errors import InvalidArgumentError, NoSpaceError
from mooncake_hicache.machine import MemoryOnOffer, cpu_count, memory_on_offer
from mooncake_hicache.options_base import (
    ENVIRONMENT_PREFIX,
    OptionsBase,
    environment_name,
    read_options_file,
    source_of,
)
from mooncake_hicache.options_master import MasterOptions
from mooncake_hicache.options_types import (
    POOL_SIZE_MIN_BYTES,
    Budget,
    DiskShare,
    Masters,
    Milliseconds,
    Path_,
    PoolSize,
    PoolSizeMax,
    Ports,
    RegionSize,
    Seconds,
    SliceSize,
    SsdPlaces,
    SsdSize,
    TenantQuotas,
    TopologyPath,
    Transports,
    absolute_path,
    lower_case,
    port_range,
    size_bytes,
    tenant_quotas,
)
from mooncake_hicache.units import format_size, parse_percent

__all__ = [
    "ENVIRONMENT_PREFIX",
    "MasterOptions",
    "NodeOptions",
    "StoreOptions",
    "TransferOptions",
    "environment_name",
    "options_file_text",
    "options_without_mistakes",
]

MiB = 1 << 20
COPY_THREADS_AUTO_MAX = 16


class NodeOptions(OptionsBase):
    """What a node is started with. Immutable.

    Raises (on construction):
        InvalidArgumentError: An option is unknown or does not fit, or the file cannot be read.

    Example:
        >>> options = NodeOptions(pool_size="64MiB", idle_timeout_s="10min")
        >>> options.pool_size_bytes(), options.idle_timeout_s
        (67108864, 600)
    """

    if TYPE_CHECKING:  # Values come as people write them ("2s"), not as they are kept.

        def __init__(self, **values: Any) -> None: ...

    config: Path_ = ""
    """A TOML or JSON file of options. Empty: no file."""

    runtime_dir: Path_ = ""
    """The private folder (mode 0700) of socket, locks, state and log. Empty:
    $XDG_RUNTIME_DIR/mooncake-hicache, or /tmp/mooncake-hicache-<uid>, so that the processes of one
    user find each other without any setting."""

    socket: Path_ = ""
    """The node's unix socket, at most 107 bytes. Empty: node.sock in runtime_dir. Set it to reach a
    node that somebody else runs; then none is started."""

    pool_size: PoolSize = "25%"
    """Shared memory for pages: a size (64GB, 512MiB) or a share of the memory that is available
    when the node starts, cgroup limits respected. A quarter by default: most of a serving machine's
    memory belongs to the engine, and a cache that drives it into the limit is worse than none."""

    pool_size_max: PoolSizeMax = ""
    """Have the pool grow to the sum of the pool_size (no shares) of all stores that are connected
    and have this set, up to so much and while memory is found for it; it keeps what it has grown
    to. A size, or a share as of pool_size. Empty: the pool does not grow. Nor does it on huge pages
    that were set aside, or where RDMA devices have it registered."""

    huge_pages: Literal["auto", "never", "always"] = "auto"
    """Back the pool with huge pages: auto takes what there is and says so, always refuses to start
    without."""

    numa_node: Annotated[int, Field(ge=-1, le=1023)] = -1
    """Bind the pool to this NUMA node. -1: leave it to the kernel, which interleaves best when
    ranks of all sockets share one pool."""

    eviction_policy: Literal["adaptive", "lru", "s3fifo"] = "adaptive"
    """Who goes first when room is needed. adaptive follows whichever policy would have hit more."""

    ssd: SsdPlaces = "auto"
    """Where pages go that leave memory, and what a restarted node has again: directories on SSD,
    each with a limit if it is to have one of its own ("/nvme0/kv=2TB,/nvme1/kv", or a list). auto:
    mooncake-hicache in the user's cache folder ($XDG_CACHE_HOME or ~/.cache), if that lies on a
    local disk with room; a node inside a process has none then. off: memory only. A directory that
    is named and cannot be used keeps the node from starting; auto only says why in the log."""

    ssd_size: SsdSize = "auto"
    """The limit of each directory that has none of its own: a size, or a share of the free space
    together with what the pages there take already. auto: 80% of that where directories are named,
    and for the automatic one the less of 10% and 100 GB, because nobody was asked."""

    ssd_free_min: DiskShare = "5%"
    """What must stay free on the file system for others: a share of it, or a size. When less is
    free the pages give way. File systems and SSDs both get slow when they are full."""

    ssd_write: Literal["evict", "through"] = "evict"
    """When a page is written: evict, shortly before it would leave memory, or when the node stops;
    or through, as soon as it is put, so that a node that is killed loses next to nothing, at the
    price of more wear."""

    ssd_write_budget: Budget = "2TB"
    """Bytes per day that may be written over all directories; 0: no limit. Flash wears out by
    writing: 2 TB a day is one drive-write per day of a small enterprise SSD, which is what those
    are made for. What was not used is kept for three hours (an eighth of a day) and may be written
    at once. When half of that is left only pages that were used again are written."""

    ssd_region_size: RegionSize = "256MiB"
    """Space on SSD is filled and given up in regions of this size: large, so that the SSD erases
    whole units of its own. A directory needs at least two, and a page must fit in one. It counts
    for new directories; those in use keep theirs."""

    ssd_io: Literal["auto", "io_uring", "threads"] = "auto"
    """How the node reads and writes SSDs. auto: io_uring where the kernel and the container permit
    it, else threads, which take more of the CPU."""

    ssd_staging: bool = True
    """Bring pages that a look-up finds on SSD into memory before they are read. Off, every read of
    them waits for the SSD; for measuring."""

    flush_timeout_s: Seconds = 60
    """Seconds that a node which stops may take to write to SSD what is only in memory. It serves
    meanwhile. 60 s at 2 GB/s are 120 GB; service managers must wait as long. 0: nothing is
    written."""

    drain_timeout_s: Seconds = 30
    """Seconds that a node of a cluster which stops may take to give its pages to other nodes, those
    first that were read. It serves meanwhile; what they have no room for is lost with its memory,
    or flushed. 30 s at 10 GB/s are 300 GB; service managers must wait as long. 0: none are
    given."""

    read_lease_ttl_ms: Annotated[Milliseconds, Field(ge=100, le=600_000)] = 5000
    """Milliseconds that a page stays put for a reader. Longer than any call's deadline, short
    enough that a reader that hangs does not hold memory for long."""

    lookup_lease_ttl_ms: Annotated[Milliseconds, Field(ge=0, le=600_000)] = 10_000
    """Milliseconds that a page which a look-up reported is kept for the read that follows. An
    engine reads one scheduler step later; behind other requests' reads that is many seconds. 0:
    look-ups take no leases."""

    lookup_lease_share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.25
    """The share of the pool that look-ups may lease in all, so that puts always find room. Those of
    the external linker, which reports nothing that it cannot lease, may have twice as much."""

    hard_pin_share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.5
    """The share of the pool that hard-pinned pages may take; a hard pin beyond it is refused,
    because what is pinned is lost to everybody else."""

    quotas: TenantQuotas = ""
    """What each tenant may use of this node's pool, each a size or a share of what the pool is when
    the node starts: "acme=200GB,labs=10%,*=5%", or a table. The name "*" is for each tenant that is
    not named; who has no quota shares what is left. A tenant at its quota makes room with its own
    pages. For tenants that the master has a quota of that counts."""

    reservation_ttl_ms: Annotated[Milliseconds, Field(ge=1000, le=600_000)] = 30_000
    """Milliseconds that a put may take from reserving its room to having filled it. Far beyond any
    put: it only gives back the room of a client that hangs."""

    clients_max: Annotated[int, Field(ge=1, le=65536)] = 256
    """Connections at once. Each engine rank holds one; beyond this a client is turned away."""

    master: Masters = ""
    """The masters of the cluster that this node belongs to: "host:50051", several with commas.
    Empty: none, the node is alone. What every machine of a cluster has to know besides is
    transfer_secret."""

    node_name: str = ""
    """This node's own name in the cluster. Empty: the host's name and runtime_dir."""

    node_host: str = ""
    """The address at which other nodes reach this one ("0.0.0.0" or "::" for all). Empty: loopback
    if all masters are on this machine, otherwise this machine's address towards the first one."""

    node_public_host: str = ""
    """What other nodes are told to connect to. Empty: `node_host`, or this machine's address
    towards its default route if that is all addresses."""

    node_ports: Ports = "0"
    """The ports at which it listens for other nodes, two of them, or a range of which free ones are
    taken ("12000-12010"), for firewalls. 0: any free ones."""

    failure_domain: str = ""
    """What is lost together with this node: a machine, a rack. Empty: the host's name."""

    remote_lookup_timeout_ms: Annotated[Milliseconds, Field(ge=1, le=60_000)] = 50
    """Milliseconds that a look-up waits for the master and other nodes; what is not known by then
    is missed. Far beyond the millisecond it takes, far below the time to compute a page anew."""

    http_host: str = "127.0.0.1"
    """The address of /metrics, /health and /status, and of stores that were asked to tell of
    themselves over HTTP. Loopback by default: they carry no authentication."""

    http_port: Annotated[int, Field(ge=-1, le=65535)] = 0
    """The TCP port of the same. 0: any free one (`status` prints it). -1: no HTTP."""

    idle_timeout_s: Seconds = 3600
    """Seconds without a client after which the node stops and gives its memory back. An hour
    outlives any restart of an engine. 0: never."""

    log_file: Path_ = ""
    """Where the node logs. Empty: node.log in runtime_dir, or the terminal when run in the
    foreground."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important messages that the node logs."""

    def quota_bytes(self, pool_size_bytes: int) -> dict[str, int]:
        """Return the bytes that each tenant may use of a pool of this size."""
        found = {}
        for tenant, text in tenant_quotas(self.quotas).items():
            percent = parse_percent(text)
            share = pool_size_bytes * (percent or 0) / 100
            found[tenant] = size_bytes(text) if percent is None else int(share)
        return found

    def ssd_write_budget_bytes(self) -> int:
        """Return the bytes that may be written to SSD per day; 0: no limit."""
        return size_bytes(self.ssd_write_budget)

    def ssd_region_size_bytes(self) -> int:
        """Return the size of a region on SSD in bytes."""
        return size_bytes(self.ssd_region_size)

    def pool_size_bytes(self, offer: MemoryOnOffer | None = None) -> int:
        """Return the pool's size in bytes on this machine, now.

        Args:
            offer: The memory on offer; measured when not given.

        Raises:
            NoSpaceError: The size is more than the memory on offer; the message names the remedy.
        """
        offer = offer or memory_on_offer()
        percent = parse_percent(self.pool_size)
        if percent is not None:
            return _share_of(offer, percent)
        size = size_bytes(self.pool_size)
        if size > offer.size_bytes:
            raise NoSpaceError(
                f"pool_size {self.pool_size} ({format_size(size)}) is more than the "
                f"{format_size(offer.size_bytes)} of memory on offer (by {offer.bound}): set "
                "pool_size or "
                f'{environment_name("pool_size")} to less or to a share such as "25%", free '
                "memory, or "
                "raise the limit"
            )
        return size

    def pool_size_max_bytes(self, offer: MemoryOnOffer | None = None) -> int:
        """Return what the pool may grow to in bytes on this machine, now: never less than its size.

        Args:
            offer: The memory on offer; measured when not given.

        Raises:
            NoSpaceError: As pool_size_bytes().
        """
        offer = offer or memory_on_offer()
        size = self.pool_size_bytes(offer)
        if not self.pool_size_max:
            return size
        percent = parse_percent(self.pool_size_max)
        most = size_bytes(self.pool_size_max) if percent is None else _share_of(offer, percent)
        return max(size, min(most, offer.size_bytes))


def _share_of(offer: MemoryOnOffer, percent: float) -> int:
    size = int(offer.size_bytes * percent / 100) // (2 * MiB) * (2 * MiB)
    return max(size, POOL_SIZE_MIN_BYTES)


class StoreOptions(NodeOptions):
    """What a client is opened with, and what it starts a node with if there is none. Immutable.

    The options of the node that runs already win over those given here: ask it with
    `Store.stats()`.

    Raises (on construction):
        InvalidArgumentError: An option is unknown or does not fit, or the file cannot be read.
    """

    autostart: bool = True
    """Start a node when none answers, at first and again when it is gone. Off, calls are misses
    until somebody starts one."""

    in_process: bool = False
    """Run the node inside this process, for tests and scripts: its pages go when the store is
    closed."""

    call_timeout_ms: Annotated[Milliseconds, Field(ge=1, le=60_000)] = 1000
    """Milliseconds that one call may take; then the rest of it is misses. SGLang joins its storage
    threads for 10 s at most, so this stays far below."""

    copy_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads that copy and verify inside one call. 0: one per CPU, at most 16, beyond which memory
    and not the CPU is the limit. With fewer a hit takes longer, and requests that decode meanwhile
    may be held up less."""

    put_copy_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Of these, the threads that copy for a put. 0: all; under SGLang, where nobody waits for a
    put and the engine computes beside it, a quarter."""

    verify: bool = True
    """Check every byte that is read against its checksum while it is copied. Off is for measuring
    only."""

    start_timeout_ms: Annotated[Milliseconds, Field(ge=100, le=600_000)] = 15_000
    """Milliseconds that a node may take to start. A start takes well under a second; the rest is
    for machines that are busy loading a model."""

    node_unresponsive_ms: Annotated[Milliseconds, Field(ge=100, le=600_000)] = 2000
    """Milliseconds without an answer after which a node that still lives is taken for stuck, killed
    and replaced by the client that holds the start lock."""

    sglang: Annotated[Literal["on", "off", "required"], BeforeValidator(lower_case)] = "on"
    """Whether the plugin takes over SGLang's storage backend `mooncake`: off leaves SGLang's own in
    place, required ends the server when it cannot be taken over. Read when SGLang loads its
    plugins, so only the environment counts."""

    def copy_thread_count(self) -> int:
        """Return how many threads copy inside one call, with 0 resolved for this machine."""
        return self.copy_threads or min(cpu_count(), COPY_THREADS_AUTO_MAX)

    def pool_contribution_bytes(self) -> int:
        """Return what this store has the node's pool grow by, if that may grow; else 0."""
        is_share = parse_percent(self.pool_size) is not None
        return 0 if is_share or not self.pool_size_max else size_bytes(self.pool_size)

    def put_copy_thread_count(self) -> int:
        """Return how many of them copy for a put."""
        return min(self.put_copy_threads or 256, self.copy_thread_count())


class TransferOptions(OptionsBase):
    """What a transfer engine is started with. Immutable.

    In the environment the names begin with MOONCAKE_HICACHE_TRANSFER_, in a file with `transfer_`.

    Raises (on construction):
        InvalidArgumentError: An option is unknown or does not fit, or the file cannot be read.

    Example:
        >>> options = TransferOptions(transports="tcp", timeout_ms="5s")
        >>> options.transports, options.timeout_ms
        ('tcp', 5000)
    """

    prefix: ClassVar[str] = "transfer_"

    if TYPE_CHECKING:  # Values come as people write them ("2s"), not as they are kept.

        def __init__(self, **values: Any) -> None: ...

    config: Path_ = ""
    """A TOML or JSON file of options. Empty: the one that MOONCAKE_HICACHE_CONFIG names, if any."""

    name: str = ""
    """The segment's name, which peers see. Empty: HOST:PORT."""

    host: str = "127.0.0.1"
    """The address to listen on. Loopback by default: whoever wants peers on other machines says on
    which network ("0.0.0.0" or "::" for all), because payload travels unencrypted."""

    public_host: str = ""
    """What peers are told to connect to. Empty: `host`, or this machine's address towards its
    default route if that means all addresses."""

    ports: Ports = "0"
    """The port to listen on, or a range of which the first free one is taken ("12000-13000"), for
    firewalls. 0: any free one."""

    secret: Annotated[str, Field(repr=False)] = ""
    """What every engine that may talk to this one has to know: a text, or the path of a file that
    holds one. Empty: a file that is made for this user on this machine. none: everybody who reaches
    the port may read and write registered memory."""

    tls_certificate: Path_ = ""
    """A PEM file. With it, the key and the authority, control connections are encrypted and both
    ends show a certificate of that authority. Empty: no TLS."""

    tls_key: Path_ = ""
    """The PEM file of the certificate's private key."""

    tls_authority: Path_ = ""
    """The PEM file of the authority that signs the certificates of all engines."""

    transports: Transports = "local,rdma,tcp"
    """Which transports to start. One that this machine cannot run is left out, and said so: the
    best that reaches a peer is used, shared memory before RDMA before TCP."""

    slice_size: SliceSize = "0"
    """The size of the pieces into which requests are cut. 0: as each path likes best."""

    timeout_ms: Annotated[Milliseconds, Field(ge=1, le=86_400_000)] = 30_000
    """Milliseconds that a call may take when it does not say. Enough for 30 GB at 1 GB/s; a peer
    that dies is noticed at once, so this is for one that hangs."""

    spin_us: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Microseconds that a wait polls before it sleeps. Saves a few microseconds of latency and
    costs a core meanwhile."""

    tries_max: Annotated[int, Field(ge=1, le=100)] = 4
    """How often a piece is tried, on whichever path, before its batch fails."""

    batches_max: Annotated[int, Field(ge=1, le=65535)] = 4096
    """Open batches of one peer; more are refused as busy."""

    requests_max: Annotated[int, Field(ge=1, le=1 << 24)] = 1 << 18
    """Requests in all open batches of one peer, 40 bytes of memory each; more are refused."""

    slices_max: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """Pieces on their way to one peer at a time; the rest waits."""

    tcp_lanes: Annotated[int, Field(ge=0, le=64)] = 0
    """TCP connections to each peer. Large requests are striped over them. 0: one per two CPUs, at
    least 4 and at most 8."""

    tcp_io_threads: Annotated[int, Field(ge=0, le=64)] = 0
    """Threads that move bytes over TCP. 0: one per two CPUs, at most 8."""

    tcp_checksum: bool = True
    """Check every piece that is moved over TCP against a checksum."""

    local_copy_threads: Annotated[int, Field(ge=0, le=64)] = 0
    """Threads that copy between processes of this machine. 0: one per CPU, at most 4, which fill
    the memory's bandwidth."""

    rdma_devices: str = ""
    """RDMA devices to use: "mlx5_0,mlx5_1/2" for a device and one port of another. Empty: all."""

    rdma_settings: str = ""
    """A JSON object of settings of the RDMA transport (queue pairs, depths, GID, traffic class).
    Empty: all as it comes."""

    topology: TopologyPath = ""
    """A JSON file with the costs between devices and places of memory, as `mooncake-hicache
    topology` prints it. auto: what this machine tells. Empty: as the transports tell. Either way
    costs are corrected by what is measured."""

    def port_range(self) -> tuple[int, int]:
        """Return the first and the last port to listen on; (0, 0) for any."""
        return port_range(self.ports)

    def slice_size_bytes(self) -> int:
        """Return the size of slices in bytes; 0: as each path likes best."""
        return size_bytes(self.slice_size)

    def tcp_lane_count(self) -> int:
        """Return how many TCP connections a peer gets, with 0 resolved for this machine."""
        return self.tcp_lanes or max(4, min(8, cpu_count() // 2))

    def tcp_io_thread_count(self) -> int:
        """Return how many threads move bytes over TCP, with 0 resolved for this machine."""
        return self.tcp_io_threads or max(1, min(8, cpu_count() // 2))

    def local_copy_thread_count(self) -> int:
        """Return how many threads copy locally, with 0 resolved for this machine."""
        return self.local_copy_threads or min(4, cpu_count())


def options_without_mistakes(given: dict[str, Any]) -> StoreOptions:
    """Return the options in effect, with each wrong one left at its default.

    For whoever looks for all mistakes: nobody else should go on with a wrong option.

    Args:
        given: Options that take precedence over environment and file.
    """
    config = given.get("config") or os.environ.get(environment_name("config")) or ""
    path = str(absolute_path(config))
    try:
        file_values = read_options_file(path) if path else {}
    except InvalidArgumentError:
        file_values = {}
    found, sources = {}, {}
    for name, field in StoreOptions.model_fields.items():
        source = source_of(environment_name(name), name, given, path, file_values)
        value = given.get(name) or os.environ.get(environment_name(name)) or file_values.get(name)
        kind: Any = Annotated[field.annotation, field]
        try:
            found[name] = TypeAdapter(kind).validate_python(
                field.default if source == "default" else value
            )
            sources[name] = source
        except ValidationError:
            found[name] = field.default
    options = StoreOptions.model_construct(**found)
    options._sources = sources
    return options


def options_file_text() -> str:
    """Return a TOML file of every option at its default, each with its description as a comment."""
    lines = [
        "# One machine: every option of mooncake-hicache at its default. Written by",
        "# `mooncake-hicache config --template`; name the file in MOONCAKE_HICACHE_CONFIG.",
    ]
    for owner in (StoreOptions, TransferOptions, MasterOptions):
        for name, field in owner.model_fields.items():
            if name == "config":
                continue
            lines.append("")
            lines += [f"# {line}".rstrip() for line in (field.description or "").splitlines()]
            lines.append(f"{owner.prefix}{name} = {json.dumps(field.default)}")
    return "\n".join(lines) + "\n"
