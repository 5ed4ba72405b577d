"""
The compiled core of mooncake_hicache. Use the modules of the package instead.
"""

from collections.abc import Callable, Mapping, Sequence
import enum
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


KEY_SIZE: int = 32

REPLICAS_MAX: int = 8

class Code(enum.IntEnum):
    """How one item of a batch ended."""

    OK = 0

    NOT_FOUND = 1
    """A miss."""

    ALREADY_EXISTS = 2
    """Nothing to do: the page is there."""

    BUSY = 3
    """Nothing was started; try again."""

    TIMEOUT = 4
    """It may have happened."""

    UNAVAILABLE = 5
    """Not connected to a node."""

    NOT_LEADER = 6

    LEASE_EXPIRED = 7

    NO_SPACE = 8
    """No room, and nothing that may be evicted."""

    CORRUPT = 9
    """The bytes did not match their checksum; dropped."""

    INVALID_ARGUMENT = 10

    UNSUPPORTED = 11

    CANCELLED = 12
    """The namespace was cleared or the put took too long."""

    CLOSED = 13

    IO = 14

    INTERNAL = 15

    OVER_QUOTA = 16
    """
    The namespace's tenant may have no more, and none of its pages may be evicted.
    """

class Node:
    """
    A node: a pool of shared memory and the index of its pages, served on a unix socket.

    One thread of its own; every method may be called from any thread. Sizes are bytes, times
    milliseconds, shares 0 to 1. A `socket_path` that starts with "@" is abstract: no file.
    """

    def __init__(self, *, socket_path: str, pool_size_bytes: int, pool_size_max_bytes: int, huge_pages: str, numa_node: int, eviction_policy: str, read_lease_ttl_ms: int, lookup_lease_ttl_ms: int, lookup_lease_share: float, hard_pin_share: float, reservation_ttl_ms: int, clients_max: int, ssd_directories: Sequence[tuple[str, int, int]], ssd_region_size_bytes: int, ssd_write_through: bool, ssd_write_budget_bytes: int, ssd_io: str, ssd_staging: bool, quotas: Mapping[str, int], cluster: dict | None = None) -> None: ...

    @property
    def socket_path(self) -> str: ...

    @property
    def incarnation(self) -> int:
        """Differs between any two lives of a node."""

    def notices_since(self, known: int) -> tuple:
        """
        Return how many notices there ever were, and the newest of them without the first
        `known`: what could not be had, and what has failed since.
        """

    def stats(self) -> object:
        """Return counters and gauges. Waits up to 2 s for the node's thread."""

    def wait_stopped(self, timeout_ms: int) -> bool:
        """
        Block until a client asked the node to stop, or stop() was called; False at the time-out.
        """

    def flush(self, timeout_ms: int) -> bool:
        """
        Write everything worth keeping to the SSDs; it serves meanwhile. Block until that is
        done: True. False: the time-out came first, or there is no SSD to write to. May be called
        again: `ssd_flush_left_bytes` of stats() tells how much is left.
        """

    def drain(self, timeout_ms: int) -> bool:
        """
        Have the cluster know that this node is about to leave, and other nodes take what it has
        in memory; it serves meanwhile. Block until each page is safe or given up: True. False:
        the time-out came first, or there is no master or no other node. `drain_left_bytes` of
        stats() tells how much is left.
        """

    def idle_ms(self) -> int:
        """
        Return the milliseconds since the last client left, 0 while there is one.
        """

    def stop(self) -> None:
        """Close every connection and end the thread. May be called again."""

class LoadStages:
    """
    Which parts of a load have arrived. A load is made of parts, each a `get` of its own, and
    of stages that arrive in order. Having a stage is no proof that it is right: that is known
    when the gets have returned. Any thread may call.
    """

    def __init__(self, stage_count: int, part_count: int) -> None: ...

    @property
    def stage_count(self) -> int: ...

    @property
    def part_count(self) -> int: ...

    def end(self, part: int) -> None:
        """Have nobody wait for a part; a `get` does so itself when it returns."""

    def wait(self, stage: int, stream: int, timeout_ms: int) -> bool:
        """
        Wait until every part has queued the stage on its GPU or ended, and have the CUDA
        stream `stream` (its address) wait for what is queued. False: the time-out came first.
        """

class Client:
    """
    A client of one node. Any number of threads may call; every call releases the GIL, a
    look-up when its answer does not come at once.

    `keys` is a sequence of 32-byte `bytes` or 64-digit hex `str`, or one bytes-like object of
    n * 32 bytes, at most 65536 of them. Batch calls return one `Code` per key as a uint8 array
    and raise only for misuse: when not connected every item is UNAVAILABLE, at once. No call
    waits for the node longer than `call_timeout_ms`, and after it returned, whatever the
    outcome, nothing touches the given memory any more.
    """

    def __init__(self, *, copy_threads: int, put_copy_threads: int, call_timeout_ms: int, verify: bool, name: str, pool_contribution_bytes: int = 0) -> None: ...

    def connect(self, socket_path: str, timeout_ms: int) -> None:
        """
        Connect to the node that listens there, in place of any earlier connection.
        """

    def is_connected(self) -> bool: ...

    def wait_disconnected(self, timeout_ms: int) -> bool:
        """Block until not connected (True) or the time-out (False)."""

    def pin_pool(self, device: int) -> None:
        """
        Pin the node's pool for GPUs in the background, so that the first copies do not wait.
        """

    def open_namespace(self, digest: bytes, description: str) -> int:
        """Return a number for the namespace, valid for this client's life."""

    def lookup(self, namespace: int, keys: object, *, lease: bool, prefix: bool, poll_us: int, resident: bool = False) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """
        Return OK or NOT_FOUND per key. `lease`: keep what is found for the read to come.
        `prefix`: everything after the first miss is NOT_FOUND. `poll_us`: for how long the GIL
        is kept while a few keys' answer is on its way, in microseconds; 150 at most.
        `resident`: only what is in the node's memory counts; what is on SSD or on other nodes
        is brought there meanwhile.
        """

    def get(self, namespace: int, keys: object, addresses: Annotated[NDArray[numpy.uint64], dict(order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.uint64], dict(order='C', device='cpu', writable=False)], *, device: int = -1, stages: LoadStages | None = None, part: int = 0, stage_of_segment: Annotated[NDArray[numpy.uint64], dict(order='C', device='cpu', writable=False)] | None = None) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """
        Read pages into memory: page i is scattered over addresses[i, :] with sizes[:] or
        sizes[i, :]. An object of another total size is NOT_FOUND. `device`: all of it is memory
        of that GPU; -1: of the CPU. `stages`: told as they arrive, of part `part`, where
        stage_of_segment[:] says which stage each of sizes[:] belongs to.
        """

    def put(self, namespace: int, keys: object, addresses: Annotated[NDArray[numpy.uint64], dict(order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.uint64], dict(order='C', device='cpu', writable=False)], *, parent: object | None, chained: bool, ttl_ms: int = 0, pin: int = 0, replace: bool = False, replicas: int = 1, device: int = -1) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """
        Store pages gathered from memory. OK: stored; ALREADY_EXISTS: nothing to do.
        """

    def get_bytes(self, namespace: int, key: bytes | str) -> bytes | None:
        """Return an object of any size, or None."""

    def get_bytes_batch(self, namespace: int, keys: object) -> list:
        """Return each object, or None, in one round trip."""

    def remove(self, namespace: int, keys: object) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def set_pin(self, namespace: int, keys: object, pin: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """Pin: 0 none, 1 soft, 2 hard."""

    def clear(self, namespace: int) -> int:
        """Drop every page of the namespace; return how many."""

    def node_stats(self) -> object:
        """Return the node's counters and gauges."""

    def stats(self) -> dict:
        """Return this client's counters."""

    def stop_node(self) -> None:
        """Ask the node to stop."""

    def close(self) -> None:
        """Break the connection. May be called again."""

    def object_put(self, namespace: int, names: object, addresses: object, sizes: object, *, pin: int, ttl_ms: int, replace: bool, replicas: int = 1, ssd_wait_ms: int = 0) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """
        Store objects: for each an address and a size, or lists of them that are gathered.
        `ssd_wait_ms`: for so long it waits for an SSD to take what it would push out.
        OK: stored; ALREADY_EXISTS: nothing to do.
        """

    def object_get_into(self, namespace: int, names: object, addresses: object, sizes: object) -> tuple:
        """
        Read objects into memory at least as large as they are; returns codes and sizes.
        INVALID_ARGUMENT: the memory is too small.
        """

    def object_get(self, namespace: int, names: object) -> tuple:
        """Return codes, and each object as bytes, or None."""

    def object_lookup(self, namespace: int, names: object, *, lease: bool) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """Return OK or NOT_FOUND per name."""

    def object_sizes(self, namespace: int, names: object) -> tuple:
        """Return codes and sizes; nothing is copied."""

    def object_remove(self, namespace: int, names: object) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def object_set_pin(self, namespace: int, names: object, pin: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def object_list(self, namespace: int, cursor: int) -> tuple:
        """
        Return some of the names in the cluster and the next cursor. Begin with 0; None: that was
        all. What stays at one node all the while is listed at least once. Raises UnavailableError
        if a node of the cluster, or its master, does not answer.
        """

class BufferHandle:
    """An object that was read. It lives as long as this, or a view of it."""

    def __init__(self, value: bytes) -> None:
        """Takes bytes that nobody else uses."""

    def ptr(self) -> int:
        """Return the address of the first byte."""

    def size(self) -> int:
        """Return how many bytes there are."""

    def __len__(self) -> int: ...

STRIPE_SIZE: int = 524288

def page_checksum(address: int, size: int) -> int:
    """
    Return the checksum of a page of `size` bytes that lies in one piece at `address`.
    """

def write_each_page(address: int, size: int, threads: int, timeout_ms: int) -> bool:
    """
    Write to each OS page of a range without changing a byte, so that the first copy into it is
    as fast as the next. Blocks; returns False if the time-out came first.
    """

class Eviction:
    """
    An eviction policy alone: for tests and benchmarks. Pages are small integers, reused after erase(). Not thread-safe; never blocks.

    Raises InvalidArgumentError for an unknown policy, for a page that is resident already or not yet.
    """

    def __init__(self, policy: str, capacity_bytes: int, seed: int = 0) -> None: ...

    def insert(self, page: int, key_hash: int, parent_hash: int = 0, size_bytes: int = 1, is_soft_pinned: bool = False, now_ms: int = 0) -> None:
        """Add a page; parent_hash 0: chain root."""

    def access(self, chain_root_first: Sequence[int], now_ms: int = 0) -> None:
        """Note that one request read these pages."""

    def erase(self, page: int, evicted: bool = True) -> None:
        """Take a page out; evicted=False: removed, not worth remembering."""

    def victim(self, is_evictable: Callable[[int], bool], now_ms: int = 0) -> int | None:
        """
        Return the page to evict next, or None if is_evictable() accepts no page. One that it refuses is not asked for again before note_evictable().
        """

    def note_evictable(self, page: int) -> None:
        """Tell that a page which is_evictable() refused may leave now."""

    def set_capacity(self, capacity_bytes: int) -> None:
        """Say what the pages' sizes may add up to from now on."""

    def page_count(self) -> int: ...

    def resident_size_bytes(self) -> int: ...

    def memory_size_bytes(self) -> int: ...

    def check_invariants(self) -> str:
        """Return what is inconsistent, or an empty string."""

def replay_trace(policy: str, capacity_pages: int, starts: numpy.typing.NDArray[numpy.uint64], ids: numpy.typing.NDArray[numpy.uint64], now_ms: numpy.typing.NDArray[numpy.uint64], seed: int = 0) -> tuple[numpy.typing.NDArray[numpy.uint32], int]:
    """
    Replay requests against a cache of equal pages; request i names the pages ids[starts[i]:starts[i+1]], root first. Return the leading pages that each request hit, and the policy's memory in bytes at the end. The GIL is released.
    """

class TransferEngine:
    """
    A transfer engine: see csrc/transfer/engine.h. Any number of threads may call; every call
    that may wait releases the GIL. Addresses are of this process; `segment` and `batch` are
    numbers that the engine gave, and bogus ones are refused.
    """

    def __init__(self, options: dict) -> None: ...

    @property
    def name(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def notices(self) -> list[str]:
        """What was asked for and could not be had."""

    def stats(self) -> dict[str, Any]: ...

    def set_topology(self, json: str) -> None:
        """Prefer rails that are near to the memory they move; "": as measured."""

    def stop(self) -> None:
        """
        End everything; block until no byte is in flight. May be called again. A time-out says that a stopped process may still touch what is registered.
        """

    def register_memory(self, address: int, size: int, location: str, remote_write: bool) -> None: ...

    def unregister_memory(self, address: int) -> None:
        """Once this returns no peer touches the range."""

    def allocate_memory(self, size_bytes: int) -> numpy.typing.NDArray[numpy.uint8]:
        """Return registered memory that peers of this machine can map."""

    def free_memory(self, address: int) -> None:
        """Unmap what allocate_memory() gave. Nothing may look at it any more."""

    def open_segment(self, address: str, timeout_ms: int) -> int:
        """Connect to the engine at "host:port"."""

    def close_segment(self, segment: int) -> None: ...

    def is_lost(self, segment: int) -> bool:
        """Whether the peer is gone."""

    def describe(self, segment: int, timeout_ms: int) -> dict[str, Any]: ...

    def notify(self, segment: int, name: str, message: str, timeout_ms: int) -> None: ...

    def take_notices(self) -> list[tuple[str, str, str]]:
        """Return (from, name, message) of each, oldest first."""

    def probe(self, segment: int, timeout_ms: int) -> None: ...

    def transfer_one(self, segment: int, write: bool, local_address: int, remote_address: int, size: int, background: bool, timeout_ms: int) -> int:
        """Move one range and wait for it; return the bytes moved."""

    def transfer(self, segment: int, write: bool, local_addresses: object, remote_addresses: object, sizes: object, background: bool, timeout_ms: int) -> int:
        """Move many ranges and wait for them all."""

    def submit(self, segment: int, write: bool, local_addresses: object, remote_addresses: object, sizes: object, background: bool, timeout_ms: int) -> int:
        """Begin to move many ranges; return the batch's number."""

    def poll(self, batch: int) -> tuple[bool, int, Code, str]:
        """Return (is_done, bytes_done, code, message)."""

    def wait(self, batch: int, timeout_ms: int) -> tuple[bool, int, Code, str]:
        """Block until the batch is done or the time-out; return as `poll`."""

    def release(self, batch: int) -> None:
        """Forget a batch; block until nothing of it is in flight."""

class Directory:
    """
    The directory of a cluster, served at a TCP port by a thread of its own.

    It leads nobody until lead() is called. Every method may be called from any thread.
    """

    def __init__(self, options: dict) -> None: ...

    @property
    def port(self) -> int: ...

    @property
    def epoch(self) -> int:
        """0: it does not lead."""

    @property
    def newest_epoch_heard(self) -> int:
        """
        The newest epoch that anybody spoke of. Above its own: another may lead.
        """

    def lead(self, epoch: int) -> None:
        """
        Lead from now on, with nothing known; 0: no longer. Done when it returns.
        """

    def stats(self) -> dict:
        """Return counters and gauges. Waits for the directory's thread."""

    def members(self) -> list:
        """Return what is known of each node. Waits likewise."""

    def notices_since(self, known: int) -> tuple:
        """
        Return how many notices there ever were, and the newest of them without the first
        `known`: who was refused for speaking another version.
        """

    def stop(self) -> None:
        """Close every connection and end the threads. May be called again."""

class DirectoryClient:
    """
    Asks whichever of several directories leads.

    It connects by itself, again and again. Any thread. Calls raise UnavailableError or
    TimeoutError_ with the cause when nobody answers that leads.
    """

    def __init__(self, *, addresses: Sequence[tuple[str, int]], secret: str, tls_certificate: str = '', tls_key: str = '', tls_authority: str = '', connect_timeout_ms: int = 2000) -> None: ...

    @property
    def epoch(self) -> int:
        """The newest epoch heard of."""

    def members(self, timeout_ms: int) -> list:
        """Return what the directory knows of each node."""

    def locate(self, digest: object, keys: object, is_prefix: bool = False, replicas_max: int = 1, timeout_ms: int = 1000) -> list:
        """
        Return for each key who has the page: (index of the node, tiers, generation).
        """

    def drain(self, name: str, is_on: bool = True, *, timeout_ms: int = 5000) -> None:
        """Have a node give its pages away, or end that."""

    def quotas(self, timeout_ms: int = 5000) -> tuple:
        """
        Return the bytes that each tenant may use of all nodes' memory, by name; and what those
        use that have a quota anywhere, by name: limits and bytes of all nodes together.
        """

    def set_quota(self, tenant: str, size_bytes: int, *, timeout_ms: int = 5000) -> None:
        """
        Say what a tenant may use of all nodes' memory; 0: it has no quota any more.
        """

    def clear(self, digest: object, *, timeout_ms: int = 5000) -> int:
        """
        Have all nodes forget a namespace; return how many replicas were known.
        """

    def stop(self) -> None:
        """End the connection. May be called again."""
