"""What callers of the REST service may take of it: bodies, memory, time, requests at a time."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
from collections.abc import Iterator

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.store.rest_servers import SUCCESS, Caller, serving_with, why
from tests.compat.store.stores import MiB, noise
from tests.processes import wait_for


def test_a_body_that_is_too_large_is_413_and_not_stored(store: MooncakeDistributedStore) -> None:
    with serving_with(store, body_size_bytes=10_000) as rest:
        assert rest.put("fits", "x" * 9_000) == (200, SUCCESS)
        answer = rest.put("too large", "x" * 10_000)
        assert answer[0] == 413
        assert "10000" in why(answer)
        # Without a length, one that ends late: no more than the bound is ever kept.
        line = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=30)
        line.request("PUT", "/api/put", body=iter([b"x" * 1000] * 20), encode_chunked=True)
        answered = line.getresponse()
        assert (answered.status, "error" in json.loads(answered.read())) == (413, True)
        line.close()
        assert rest.exist("too large") == (200, {"exists": False})
        assert rest.remove("fits") == (200, SUCCESS)


def test_what_a_small_body_grows_to_counts(store: MooncakeDistributedStore) -> None:
    with serving_with(store, body_size_bytes=10_000) as rest:
        for size, status in ((9_000, 200), (1_000_000, 413)):
            body = gzip.compress(json.dumps({"key": "packed", "value": "x" * size}).encode())
            assert len(body) < 10_000
            packed = Caller(rest.port, **{"Content-Encoding": "gzip"})
            assert packed.ask("/api/put", "PUT", body)[0] == status
        assert rest.get("packed") == (200, b"x" * 9_000)
        assert rest.remove("packed") == (200, SUCCESS)


def test_a_body_that_does_not_come_is_408(store: MooncakeDistributedStore) -> None:
    with (
        serving_with(store, body_timeout_s=0.2) as rest,
        rest.half_a_put("slow", "x" * 100) as (line, _),
    ):
        assert line.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert rest.exist("slow") == (200, {"exists": False})


def test_more_requests_than_fit_are_503_until_one_has_ended(
    store: MooncakeDistributedStore,
) -> None:
    with serving_with(store, request_count=2) as rest:
        with rest.half_a_put("first", "1" * 50) as (first, rest_of_first):
            with rest.half_a_put("second", "2"):
                wait_for("both are under way", lambda: rest.exist("x")[0] == 503)
                assert "2 requests are under way" in why(rest.put("third", "3"))
            wait_for("the one that hung up is forgotten", lambda: rest.exist("x")[0] == 200)
            first.sendall(rest_of_first)
            assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert rest.get("first") == (200, b"1" * 50)
        assert rest.remove("first") == (200, SUCCESS)


def test_memory_for_bodies_and_values_is_bounded(store: MooncakeDistributedStore) -> None:
    assert store.put("large", b"x" * 200_001) == store.put("fits", b"x" * 150_000) == 0
    with serving_with(store, memory_bytes=200_000, body_size_bytes=100_000) as rest:
        answer = rest.get("large")
        assert (answer[0], "get_into" in why(answer)) == (501, True)
        assert rest.get("fits")[0] == 200
        with rest.half_a_put("under way", "x" * 60_000):
            wait_for("it counts", lambda: rest.get("fits")[0] == 503)
            assert rest.exist("fits")[0] == 200
        wait_for("it does no longer", lambda: rest.get("fits")[0] == 200)
        # One that does not say how long it is counts as the longest.
        head = b"PUT /api/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection(("127.0.0.1", rest.port)) as line:
            line.sendall(head)
            wait_for("it counts", lambda: rest.get("fits")[0] == 503)
        wait_for("it does no longer", lambda: rest.get("fits")[0] == 200)
    assert store.remove("large") == store.remove("fits") == 0


def test_an_answer_counts_until_it_has_been_read(store: MooncakeDistributedStore) -> None:
    assert store.put("large", noise(32 * MiB)) == 0
    with serving_with(store, memory_bytes=40 * MiB, body_size_bytes=MiB) as rest:
        with unread_answer(rest, "large"):
            assert rest.get("large")[0] == 503
            assert rest.exist("large")[0] == 200
        wait_for("who has hung up no longer counts", lambda: rest.get("large")[0] == 200)
    assert store.remove("large") == 0


def test_an_answer_that_nobody_reads_ends(
    store: MooncakeDistributedStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.put("large", noise(32 * MiB)) == 0
    with (
        serving_with(store, request_count=1, send_timeout_s=0.3) as rest,
        unread_answer(rest, "large") as line,
    ):
        wait_for("there is room for another", lambda: rest.exist("large")[0] == 200)
        line.settimeout(30)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := line.recv(1 << 20):
                received += len(piece)
        assert received < 32 * MiB
    assert "Traceback" not in caplog.text
    assert store.remove("large") == 0


@contextlib.contextmanager
def unread_answer(rest: Caller, key: str) -> Iterator[socket.socket]:
    """A connection that has asked for a large object and does not read it."""
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", rest.port))
        line.sendall(f"GET /api/get/{key} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert line.recv(20).startswith(b"HTTP/1.1 200")
        yield line
