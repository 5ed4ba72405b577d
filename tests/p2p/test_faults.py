"""Sources that die, hang, lie, or are replaced; real processes and a real etcd."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mooncake_hicache import (
    ClosedError,
    CorruptError,
    Error,
    NotFoundError,
    TimeoutError_,
    UnavailableError,
)
from mooncake_hicache.p2p import P2PStore
from tests.metadata.servers import Etcd, direct
from tests.p2p.peer import Peer, content_of, digest_of
from tests.processes import wait_for

KiB, MiB = 1 << 10, 1 << 20
SIZE = 64 * MiB + 12_345
PIECE = 32 * KiB
"""Small, so that a fetch has two thousand pieces and takes long enough to be disturbed."""
LONG = 3 * SIZE
"""For what takes its time to disturb it."""


def once(at: float, act: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress callback that acts once a part of the bytes is there."""
    acted: list[int] = []

    def progress(done: int, size: int) -> None:
        if done >= at * size and not acted:
            acted.append(done)
            assert done < size, "it was over before it could be disturbed"
            act()

    return progress


def test_a_source_that_is_killed_is_made_up_for_by_another(etcd: Etcd) -> None:
    with (
        Peer(etcd.where) as first,
        Peer(etcd.where) as second,
        P2PStore(etcd.where, transports="tcp") as reader,
    ):
        first.register("killed", 1, SIZE, piece_size=PIECE)
        second.register("killed", 1, SIZE, piece_size=PIECE)
        replica = reader.get_replica(
            "killed", progress=once(0.2, lambda: first.signal(signal.SIGKILL))
        )
        assert replica.array is not None
        assert np.array_equal(replica.array, content_of(1, SIZE))
        given = replica.bytes_by_source
        assert set(given) == {first.address, second.address}, "both gave pieces"
        assert given[first.address] < SIZE * 0.8


def test_the_only_source_killed_is_an_error_soon(etcd: Etcd) -> None:
    into = np.zeros(SIZE, np.uint8)
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        source.register("alone", 2, SIZE, piece_size=PIECE)
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=f"pieces of alone.*{source.address}"):
            reader.get_replica(
                "alone", into, progress=once(0.2, lambda: source.signal(signal.SIGKILL))
            )
        assert time.monotonic() - began < 15
        # Nothing moves into the memory any more, and it may be used for something else at once.
        reader.register("reused", into)
        assert [one.name for one in reader.list("alone")] == ["alone"], "its lease runs still"


def test_a_source_that_hangs_is_left_out(etcd: Etcd) -> None:
    with (
        Peer(etcd.where) as first,
        Peer(etcd.where) as second,
        P2PStore(etcd.where, transports="tcp") as reader,
    ):
        first.register("hung", 3, SIZE, piece_size=PIECE)
        second.register("hung", 3, SIZE, piece_size=PIECE)
        replica = reader.get_replica(
            "hung",
            piece_timeout_ms=500,
            progress=once(0.2, lambda: first.signal(signal.SIGSTOP)),
        )
        assert replica.array is not None
        assert np.array_equal(replica.array, content_of(3, SIZE))


def test_a_source_that_does_not_answer_is_not_waited_for(etcd: Etcd) -> None:
    with Peer(etcd.where) as silent, Peer(etcd.where) as source, P2PStore(etcd.where) as reader:
        silent.register("silent", 20, MiB)
        source.register("silent", 20, MiB)
        silent.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert reader.get_replica("silent").bytes_by_source == {source.address: MiB}
        assert time.monotonic() - began < 4, "it was waited for until its connection failed"


def test_the_deadline_ends_a_fetch_that_hangs(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        source.register("slow", 4, SIZE, piece_size=PIECE)
        stop = once(0.2, lambda: source.signal(signal.SIGSTOP))
        began = time.monotonic()
        with pytest.raises(TimeoutError_, match="were there at the deadline"):
            reader.get_replica("slow", timeout_ms=1500, piece_timeout_ms=60_000, progress=stop)
        assert 1.4 < time.monotonic() - began < 10


def test_a_source_with_wrong_bytes_is_found_out(etcd: Etcd) -> None:
    with (
        Peer(etcd.where) as wrong,
        Peer(etcd.where) as right,
        P2PStore(etcd.where, transports="tcp") as reader,
    ):
        wrong.register("lie", 5, SIZE, piece_size=MiB)
        right.register("lie", 5, SIZE, piece_size=MiB)
        wrong.ask("scribble", "lie")
        replica = reader.get_replica("lie")
        assert replica.array is not None
        assert np.array_equal(replica.array, content_of(5, SIZE))
        assert replica.bytes_by_source == {right.address: SIZE}
        reader.unregister("lie")
        right.signal(signal.SIGKILL)
        with pytest.raises(CorruptError, match="pieces were wrong"):
            reader.get_replica("lie")
        # Who fetched in vain is no source.
        assert reader.describe("lie").partial_count == 0


def test_no_fetch_ends_with_a_piece_that_failed(etcd: Etcd) -> None:
    """Whichever of the two is asked for the last piece, and however the threads meet."""
    wrong, right = bytearray(content_of(21, 12_000)), content_of(21, 12_000)
    with (
        P2PStore(etcd.where, transports="tcp") as first,
        P2PStore(etcd.where, transports="tcp") as second,
        P2PStore(etcd.where, transports="tcp") as reader,
    ):
        first.register("rounds", wrong, piece_size=4096)
        second.register("rounds", right, piece_size=4096)
        wrong[5000] ^= 1
        into = bytearray(len(right))
        for _ in range(100):
            into[:] = bytes(len(into))
            reader.get_replica("rounds", into, share=False)
            assert into == right.tobytes()


def test_bytes_that_change_under_a_fetch_are_never_taken_for_right(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        source.register("changing", 6, LONG, piece_size=2 * PIECE)
        with pytest.raises(CorruptError, match="pieces were wrong"):
            reader.get_replica(
                "changing", progress=once(0.01, lambda: source.ask("scribble", "changing"))
            )


def test_memory_that_is_unregistered_meanwhile_is_an_error(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        source.register("withdrawn", 7, LONG, piece_size=2 * PIECE)
        with pytest.raises(UnavailableError, match="cannot be had"):
            reader.get_replica(
                "withdrawn", progress=once(0.01, lambda: source.ask("unregister", "withdrawn"))
            )
        assert reader.list("withdrawn") == []


def test_readers_give_each_other_what_they_have(etcd: Etcd) -> None:
    """While the only whole source stands still, a second reader gets what the first has."""
    with (
        Peer(etcd.where) as source,
        Peer(etcd.where) as second,
        P2PStore(etcd.where, transports="tcp") as first,
    ):
        source.register("spread", 8, SIZE, piece_size=PIECE)
        patient = {"piece_timeout_ms": 120_000, "timeout_ms": 120_000}

        def let_another_begin() -> None:
            source.signal(signal.SIGSTOP)
            assert first.describe("spread").partial_count == 1
            second.tell("get", "spread", patient)
            wait_for("both are partial", lambda: first.describe("spread").partial_count == 2)
            wait_for("the second has pieces of the first", lambda: gives(first) > 0)
            source.signal(signal.SIGCONT)

        def gives(store: P2PStore) -> int:
            return int(store.engine.stats()["transports"]["tcp"]["served_read_bytes"])

        given = first.get_replica("spread", progress=once(0.3, let_another_begin), **patient)
        assert given.array is not None
        assert np.array_equal(given.array, content_of(8, SIZE))
        digest, _, by_source = second.hear()
        assert digest == digest_of(content_of(8, SIZE))
        assert by_source[first.engine.address] > 0


def test_two_readers_at_once_and_then_without_the_source(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, Peer(etcd.where) as one, Peer(etcd.where) as other:
        source.register("twice", 9, SIZE)
        for peer in (one, other):
            peer.tell("get", "twice", {})
        want = digest_of(content_of(9, SIZE))
        assert one.hear()[0] == want
        assert other.hear()[0] == want
        source.signal(signal.SIGKILL)
        with P2PStore(etcd.where) as late:
            replica = late.get_replica("twice")
            assert replica.array is not None
            assert digest_of(replica.array) == want


def keys_of(etcd: Etcd) -> int:
    """How many keys of the store etcd has, asked without our code."""
    import base64
    import json
    import urllib.request

    start, end = (base64.b64encode(one).decode() for one in (b"mooncake-hicache/p2p/", b"n"))
    request = urllib.request.Request(
        f"http://127.0.0.1:{etcd.port}/v3/kv/range",
        json.dumps({"key": start, "range_end": end, "count_only": True}).encode(),
    )
    with direct.open(request, timeout=10) as answer:
        return int(json.loads(answer.read()).get("count", 0))


def test_a_crash_leaves_nothing_after_its_lease(own_etcd: Etcd) -> None:
    with Peer(own_etcd.where, ttl_s=2) as source:
        source.register("crash", 10, 1000)
        source.register("crash too", 11, 1000)
        assert keys_of(own_etcd) == 4
        source.signal(signal.SIGKILL)
        # etcd ends leases in rounds, and no sooner than after its own election timeout.
        wait_for("nothing is left", lambda: keys_of(own_etcd) == 0, 30)
    with P2PStore(own_etcd.where) as reader, pytest.raises(NotFoundError):
        reader.get_replica("crash")


def test_entries_outlive_their_time_while_their_process_lives(own_etcd: Etcd) -> None:
    with Peer(own_etcd.where, ttl_s=2) as source, P2PStore(own_etcd.where) as reader:
        source.register("kept", 12, 1000)
        generation = reader.describe("kept").generation
        own_etcd.lose_everything()
        own_etcd.start()
        wait_for("it is there again", lambda: bool(reader.list("kept")))
        assert reader.describe("kept").generation == generation
        assert reader.get_replica("kept").size_bytes == 1000


def test_a_fetch_goes_on_without_etcd(own_etcd: Etcd) -> None:
    with Peer(own_etcd.where) as source, P2PStore(own_etcd.where, transports="tcp") as reader:
        source.register("cut off", 13, SIZE, piece_size=PIECE)
        replica = reader.get_replica("cut off", progress=once(0.2, own_etcd.stop))
        assert replica.array is not None
        assert np.array_equal(replica.array, content_of(13, SIZE))
        assert not replica.is_shared
        with pytest.raises(UnavailableError, match="etcd"):
            reader.get_replica("cut off")
        with pytest.raises(UnavailableError, match="etcd"):
            reader.register("new", b"bytes")


def test_what_a_callback_raises_ends_the_fetch(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        source.register("stopped", 14, SIZE, piece_size=PIECE)
        into = np.zeros(SIZE, np.uint8)

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reader.get_replica("stopped", into, progress=once(0.2, stop))
        left = into.copy()
        source.ask("unregister", "stopped")
        assert np.array_equal(into, left)
        assert 0 < np.count_nonzero(into) < SIZE * 0.99
        assert not [one for one in threading.enumerate() if one.name == "hicache-p2p-fetch"]


def test_a_fetch_from_somebody_who_hangs_can_be_stopped(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        source.register("hanging", 19, SIZE, piece_size=PIECE)
        stopped_s: list[float] = []

        def stop() -> None:
            source.signal(signal.SIGSTOP)
            stopped_s.append(time.monotonic())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reader.get_replica("hanging", piece_timeout_ms=100_000, progress=once(0.2, stop))
        assert time.monotonic() - stopped_s[0] < 20


def test_closing_the_store_ends_its_fetches(etcd: Etcd) -> None:
    with Peer(etcd.where) as source:
        source.register("closed", 15, LONG, piece_size=2 * PIECE)
        reader = P2PStore(etcd.where, transports="tcp")
        with pytest.raises(ClosedError):
            reader.get_replica("closed", progress=once(0.01, reader.close))


def test_a_forked_child_leaves_its_parents_names_alone(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where) as reader:
        source.register("parent", 16, 1000)
        assert source.ask("fork") == 7
        assert reader.get_replica("parent").size_bytes == 1000


def test_versions_never_mix(etcd: Etcd) -> None:
    """One process replaces a name again and again; what readers get is one version, and never an
    older one than before."""
    size = 4 * MiB
    with P2PStore(etcd.where, transports="tcp") as writer:
        versions = [np.full(size, number, np.uint8) for number in range(30)]
        writer.register("live", versions[0], piece_size=64 * KiB)
        is_over = threading.Event()
        failures: list[str] = []
        counts = [0, 0]

        def read(number: int) -> None:
            with P2PStore(etcd.where, transports="tcp") as reader:
                last = -1
                while not is_over.is_set():
                    try:
                        replica = reader.get_replica("live", share=number == 0)
                    except Error as error:
                        failures.append(str(error))
                        return
                    assert replica.array is not None
                    seen = {int(one) for one in np.unique(replica.array)}
                    if len(seen) != 1 or min(seen) < last:
                        failures.append(f"{seen} after {last}")
                        return
                    last = min(seen)
                    counts[number] += 1

        threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for version in versions[1:]:
            before = list(counts)
            writer.register("live", version, piece_size=64 * KiB, replace=True)
            wait_for("somebody read it", lambda before=before: counts != before or failures)
        is_over.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert min(counts) > 0


def test_a_name_replaced_under_a_fetch_is_fetched_anew(etcd: Etcd) -> None:
    with Peer(etcd.where) as source, P2PStore(etcd.where, transports="tcp") as reader:
        first = source.register("moving", 17, LONG, piece_size=2 * PIECE)
        generations: list[Any] = []

        def replace() -> None:
            generations.append(source.register("moving", 18, 1000, replace=True))

        replica = reader.get_replica("moving", progress=once(0.01, replace))
        assert replica.array is not None
        assert generations[0] > first
        assert replica.generation == generations[0]
        assert np.array_equal(replica.array, content_of(18, 1000))
