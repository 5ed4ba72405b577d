"""A namespace of a store: the part of the public API that moves pages.

Keys: 32 bytes and 64 hexadecimal digits are taken as they are; any other `str` or `bytes` is hashed
(BLAKE2b-256). Trouble of the environment is never raised here: a node that is gone, stuck or full
makes a get a miss and a put a refusal, and the batch forms say which (`Code`). Mistakes of the
caller are raised as `InvalidArgumentError`.

All methods may be called from any thread. They release the GIL; a look-up does so when its answer
does not come within 150 us. One call waits for the node for at
most `call_timeout_ms` in all; the copying itself takes as long as it takes and is not counted. When
a call returns, no byte is on its way into or out of the caller's memory, whatever the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from mooncake_hicache import _core
from mooncake_hicache.arguments import (
    PlainKeys,
    check_one_per_key,
    hashed_keys,
    key_of,
    milliseconds,
    plain_keys,
    uint64_array,
)
from mooncake_hicache.buffers import spans_of
from mooncake_hicache.errors import InvalidArgumentError, class_for_code_name
from mooncake_hicache.pages.key import KEY_SIZE

if TYPE_CHECKING:
    from mooncake_hicache.store import Store

__all__ = ["Codes", "Key", "Keys", "Namespace", "Pin"]

Key = str | bytes
Keys = Sequence[Key] | bytes | npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8]
"""One `Code` per page, as a number."""
Pin = Literal["none", "soft", "hard"]

_T = TypeVar("_T")
_PINS: dict[str, int] = {"none": 0, "soft": 1, "hard": 2}
# An answer takes half of this, and giving up the GIL to a thread that never waits up to 5 ms.
_LOOKUP_POLL_US = 150
_OK = int(_core.Code.OK)
_ALREADY_EXISTS = int(_core.Code.ALREADY_EXISTS)


class Namespace:
    """Pages under one description; made by `Store.namespace`.

    Two namespaces whose descriptions differ in anything never see each other's pages.

    Example:
        >>> from mooncake_hicache import Store
        >>> store = Store.open(in_process=True, pool_size="64MiB")
        >>> pages = store.namespace({"model": "llama", "dtype": "bfloat16"})
        >>> pages.put("page-0", b"0123")
        True
        >>> pages.put("page-1", [b"45", b"67"], parent="page-0")
        True
        >>> pages.get("page-1"), pages.get("page-2")
        (b'4567', None)
        >>> left, right = bytearray(2), bytearray(2)
        >>> pages.get_into("page-1", [left, right]), left, right
        (4, bytearray(b'45'), bytearray(b'67'))
        >>> pages.prefix_length(["page-0", "page-1", "page-2", "page-3"])
        2
        >>> pages.remove("page-1"), pages.exists("page-1")
        (True, False)
        >>> pages.clear()
        1
        >>> store.close()
    """

    def __init__(self, store: Store, number: int, digest: bytes, text: str) -> None:
        self._store = store
        self._number = number
        self._digest = digest
        self._text = text

    def __repr__(self) -> str:
        return f"<Namespace {self._text} {self._digest.hex()[:12]}>"

    @property
    def digest(self) -> bytes:
        """The 32 bytes that stand for the description."""
        return self._digest

    @property
    def description(self) -> str:
        """The description as one line for people."""
        return self._text

    # One page.

    def put(
        self,
        key: Key,
        value: Any,
        *,
        parent: Key | None = None,
        ttl_ms: int = 0,
        pin: Pin = "none",
        replace: bool = False,
        replicas: int = 1,
    ) -> bool:
        """Store a page.

        Args:
            key: The page's name.
            value: A buffer, or a list of buffers that are gathered into one page.
            parent: The page before this one in its chain; eviction takes a page before its parent.
            ttl_ms: Milliseconds after which the page is dropped. 0: no such time.
            pin: `soft`: evicted only when nothing else is left. `hard`: never evicted.
            replace: Overwrite a page that is there. Otherwise it stays, which is success.
                `UNAVAILABLE` in a cluster: the new page is here, but other nodes may keep the old
                one; put it again.
            replicas: Copies that the cluster should have, 1 to 8, this one counted. The others are
                made in the background, and made anew when they are lost, as far as there are nodes
                with room and as long as this node has the page in memory.

        Returns:
            Whether a page is there now under that key. False: no room or no node; `put_batch`
        tells.
        """
        codes = self.put_batch(
            [key_of(key)],
            [value],
            parent=parent,
            ttl_ms=ttl_ms,
            pin=pin,
            replace=replace,
            replicas=replicas,
        )
        return int(codes[0]) in (_OK, _ALREADY_EXISTS)

    def get(self, key: Key) -> bytes | None:
        """Return a page's bytes, or None for a miss."""
        return self._store._client.get_bytes(self._number, key_of(key))

    def get_into(self, key: Key, buffer: Any) -> int | None:
        """Read a page into a writable buffer, or scatter it over a list of them.

        The sizes must add up to exactly the page's: a page of another size is a miss. After a miss
        the buffer's content is undefined.

        Returns:
            The page's size in bytes, or None for a miss.
        """
        spans = spans_of([buffer], writable=True)
        codes = self._store._client.get(self._number, [key_of(key)], spans.addresses, spans.sizes)
        return int(spans.sizes.sum()) if int(codes[0]) == _OK else None

    def exists(self, key: Key) -> bool:
        """Return whether a page is there now. Takes no lease: it may be gone when it is read."""
        return int(self.lookup([key_of(key)], lease=False, prefix=False)[0]) == _OK

    def remove(self, key: Key) -> bool:
        """Drop a page. Return whether it was there.

        Raises:
            Error: That is not known, or it may come back with a restart: no node answered, the
                removal did not reach a disk, or not every node that has a copy.
        """
        code = _core.Code(int(self.remove_batch([key_of(key)])[0]))
        if code not in (_core.Code.OK, _core.Code.NOT_FOUND):
            raise class_for_code_name(code.name)(
                f"the removal of the page was not confirmed ({code.name}): it may still be there, "
                "or come back with a restart; remove it again"
            )
        return code == _core.Code.OK

    def clear(self) -> int:
        """Drop every page of this namespace and of no other; return how many there were here: in
        memory, or on SSD if those are more. In a cluster all nodes drop theirs, very soon.

        Raises:
            TransientError: No node answered; or this node's pages are gone, and no master confirmed
                that the others drop theirs (the message says which).
        """
        return self._store._client.clear(self._number)

    # Many pages.

    def put_batch(
        self,
        keys: Keys,
        values: Sequence[Any],
        *,
        parent: Key | None = None,
        chained: bool = False,
        ttl_ms: int = 0,
        pin: Pin = "none",
        replace: bool = False,
        replicas: int = 1,
    ) -> Codes:
        """Store many pages in one call; see `put`.

        Args:
            keys: One per page.
            values: For each page a buffer, or a list of buffers.
            parent: The page before the first one, or before each of them if they are not chained.
            chained: Each page is the parent of the next.
            ttl_ms: As for `put`.
            pin: As for `put`.
            replace: As for `put`.
            replicas: As for `put`.

        Returns:
            `OK` for a page that was stored, `ALREADY_EXISTS` for one that was there, otherwise why
        not.
        """
        spans = spans_of(values, writable=False)
        check_one_per_key(keys, len(spans.addresses), "value")
        return self.put_from(
            keys,
            spans.addresses,
            spans.sizes,
            parent=parent,
            chained=chained,
            ttl_ms=ttl_ms,
            pin=pin,
            replace=replace,
            replicas=replicas,
        )

    def get_batch(self, keys: Keys) -> list[bytes | None]:
        """Return the bytes of many pages whose sizes need not be known, None for each miss."""
        return self._with_keys(
            keys, lambda plain: self._store._client.get_bytes_batch(self._number, plain)
        )

    def get_batch_into(self, keys: Keys, buffers: Sequence[Any]) -> Codes:
        """Read many pages into writable buffers; see `get_into`. `OK` for each that was read."""
        spans = spans_of(buffers, writable=True)
        check_one_per_key(keys, len(spans.addresses), "buffer")
        return self.get_into_addresses(keys, spans.addresses, spans.sizes)

    def exists_batch(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return for each key whether its page is there now. Takes no leases."""
        found: npt.NDArray[np.bool_] = self.lookup(keys, lease=False, prefix=False) == _OK
        return found

    def prefix_length(self, keys: Keys, *, lease: bool = True) -> int:
        """Return how many pages from the first on are there without a gap.

        Args:
            keys: The chain, root first.
            lease: Keep the pages that are reported for the read that follows
        (`lookup_lease_ttl_ms`).
        """
        codes = self.lookup(keys, lease=lease, prefix=True)
        misses = np.flatnonzero(codes != _OK)
        return int(misses[0]) if len(misses) else len(codes)

    def remove_batch(self, keys: Keys) -> Codes:
        """Drop many pages: `OK` for each that was there, `NOT_FOUND` for one that was not, and
        another code where `remove` raises."""
        return self._with_keys(keys, lambda plain: self._store._client.remove(self._number, plain))

    def pin(self, keys: Keys, pin: Pin) -> Codes:
        """Change the pin of many pages, see `put`: `OK` for each that is there."""
        level = _pin_level(pin)
        return self._with_keys(
            keys, lambda plain: self._store._client.set_pin(self._number, plain, level)
        )

    # Without Python objects: addresses of memory of this process.

    def put_from(
        self,
        keys: Keys,
        addresses: npt.ArrayLike,
        sizes: npt.ArrayLike,
        *,
        parent: Key | None = None,
        chained: bool = True,
        ttl_ms: int = 0,
        pin: Pin = "none",
        replace: bool = False,
        replicas: int = 1,
        device: int | None = None,
    ) -> Codes:
        """Store pages gathered from addresses; see `put_batch`.

        Args:
            keys: n keys.
            addresses: Integers, shape (n, pieces per page). The memory must stay valid during the
                call.
            sizes: Bytes of the pieces, shape (pieces,) if all pages are alike, or (n, pieces).
            parent: As for `put_batch`.
            chained: As for `put_batch`.
            ttl_ms: As for `put`.
            pin: As for `put`.
            replace: As for `put`.
            replicas: As for `put`.
            device: The CUDA device whose memory all addresses are in; None: the CPU's. Whoever
                wrote it has synchronised with the kernels that did.
        """
        level = _pin_level(pin)
        parent_key = None if parent is None else key_of(parent, "parent")
        ttl = milliseconds("ttl_ms", ttl_ms)
        replica_count = _replica_count(replicas)
        address_array = uint64_array("addresses", addresses)
        size_array = uint64_array("sizes", sizes)
        return self._with_keys(
            keys,
            lambda plain: self._store._client.put(
                self._number,
                plain,
                address_array,
                size_array,
                parent=parent_key,
                chained=chained,
                ttl_ms=ttl,
                pin=level,
                replace=replace,
                replicas=replica_count,
                device=_device_number(device),
            ),
        )

    def get_into_addresses(
        self,
        keys: Keys,
        addresses: npt.ArrayLike,
        sizes: npt.ArrayLike,
        *,
        device: int | None = None,
        stages: _core.LoadStages | None = None,
        part: int = 0,
        stage_of_segment: npt.ArrayLike | None = None,
    ) -> Codes:
        """Read pages and scatter them to addresses; shapes as for `put_from`.

        A page whose size is not exactly the sum of its pieces is a miss.

        Args:
            keys: n keys.
            addresses: As for `put_from`.
            sizes: As for `put_from`.
            device: The CUDA device whose memory all addresses are in; None: the CPU's. Pages go
                there without the CPU, which checks them after the GPU has read them.
            stages: Told as the stages of a load arrive; see `_core.LoadStages`. Pages are then as
                they are when the call begins: one that is on its way here is read from its disk.
            part: Which part of the load this call is.
            stage_of_segment: With `stages`: the stage of each of `sizes`, shape (pieces,).
        """
        address_array = uint64_array("addresses", addresses)
        size_array = uint64_array("sizes", sizes)
        stage_array = (
            None if stage_of_segment is None else uint64_array("stage_of_segment", stage_of_segment)
        )
        return self._with_keys(
            keys,
            lambda plain: self._store._client.get(
                self._number,
                plain,
                address_array,
                size_array,
                device=_device_number(device),
                stages=stages,
                part=part,
                stage_of_segment=stage_array,
            ),
        )

    def lookup(self, keys: Keys, *, lease: bool, prefix: bool, resident: bool = False) -> Codes:
        """Look pages up in one request: `OK` or `NOT_FOUND` for each.

        Args:
            keys: Up to thousands.
            lease: Keep what is reported for the read that follows.
            prefix: The keys are a chain: after the first miss all are `NOT_FOUND`.
            resident: Only what is in the memory of this machine counts; what is on SSD or on
                other nodes is brought there meanwhile, and counts once it is there. With `lease`,
                what cannot be kept does not count either (see `lookup_lease_share`).
        """
        return self._with_keys(
            keys,
            lambda plain: self._store._client.lookup(
                self._number,
                plain,
                lease=lease,
                prefix=prefix,
                poll_us=_LOOKUP_POLL_US,
                resident=resident,
            ),
        )

    def _with_keys(self, keys: Keys, call: Callable[[PlainKeys], _T]) -> _T:
        """Call with keys in a form that the core takes, hashing them only if they need it."""
        names = plain_keys(keys)
        if isinstance(names, bytes) or not len(names):
            return call(names)
        if _is_plain(names[0]):
            try:
                return call(names)
            except (InvalidArgumentError, UnicodeEncodeError):
                # Only the first key was looked at, because the core looks at all of them: another
                # one may need hashing, or the call is wrong and says so again.
                pass
        return call(hashed_keys(names))


def _is_plain(name: object) -> bool:
    """Return whether a name has the form of a key that the core takes."""
    return (
        len(name) == 2 * KEY_SIZE
        if isinstance(name, str)
        else isinstance(name, bytes) and len(name) == KEY_SIZE
    )


def _device_number(device: int | None) -> int:
    if device is None:
        return -1
    if not isinstance(device, int) or isinstance(device, bool) or device < 0:
        raise InvalidArgumentError(f"device {device!r}: give the number of a CUDA device, or None")
    return device


def _replica_count(replicas: int) -> int:
    is_number = isinstance(replicas, int) and not isinstance(replicas, bool)
    if not is_number or not 1 <= replicas <= _core.REPLICAS_MAX:
        raise InvalidArgumentError(f"replicas {replicas!r}: give 1 to {_core.REPLICAS_MAX}")
    return replicas


def _pin_level(pin: Pin) -> int:
    level = _PINS.get(pin) if isinstance(pin, str) else None
    if level is None:
        raise InvalidArgumentError(f"pin {pin!r}: must be none, soft or hard")
    return level
