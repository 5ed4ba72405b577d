"""Names published and found, over our HTTP server and over a real etcd."""

from __future__ import annotations

import logging
import socket
import threading
import time
import urllib.parse

import pytest

from mooncake_hicache.errors import (
    ClosedError,
    CorruptError,
    Error,
    InvalidArgumentError,
    NotFoundError,
    TimeoutError_,
    TransientError,
    UnavailableError,
    UnsupportedError,
)
from mooncake_hicache.metadata import Entry, open_metadata
from mooncake_hicache.metadata.etcd import EtcdMetadata
from mooncake_hicache.metadata.http import HttpMetadata
from tests.metadata.servers import (
    Etcd,
    OldServer,
    OurServer,
    ask,
    free_port,
    owner,
    silent_port,
)
from tests.processes import wait_for

HERE = Entry("10.0.0.1:15001", 0x9F86D081884C7D65, "host1, pid 4711")
THERE = Entry("[fd00::2]:15002", 2, "host2, pid 1")
SHORT_TTL_S = 2.0

Server = OurServer | Etcd


def is_known(where: str, name: str) -> bool:
    metadata = open_metadata(where)
    try:
        metadata.resolve(name)
    except NotFoundError:
        return False
    finally:
        metadata.close()
    return True


def keep_raw(where: str, key: str, value: bytes) -> None:
    """Put something as somebody who is not of ours would."""
    if where.startswith("http"):
        status, *_ = ask(f"{where}?key={urllib.parse.quote(key, safe='')}", "PUT", value)
        assert status == 200
    else:
        metadata = open_metadata(where)
        assert isinstance(metadata, EtcdMetadata)
        metadata._calls.call(lambda client: client.put(key, value))


# ---- what both do


def test_what_is_published_is_found_until_it_is_withdrawn(server: Server) -> None:
    ours, others = open_metadata(server.where), open_metadata(server.where)
    with pytest.raises(NotFoundError, match=f"node-0 at .*{server.port}"):
        others.resolve("node-0")
    ours.publish("node-0", HERE)
    ours.publish("10.0.0.2:12345", THERE)
    assert others.resolve("node-0") == HERE
    assert others.resolve("10.0.0.2:12345") == THERE
    ours.withdraw("node-0")
    ours.withdraw("node-0")
    ours.withdraw("never published")
    assert not is_known(server.where, "node-0")
    ours.close()
    ours.close()
    with pytest.raises(NotFoundError):
        others.resolve("10.0.0.2:12345")
    with pytest.raises(ClosedError):
        ours.resolve("node-0")
    others.close()


def test_names_may_have_any_characters_that_can_be_printed(server: Server) -> None:
    metadata = open_metadata(server.where)
    names = ["a b", "räil/🚀", "a&key=b", "100%", "a+b", "#?", "a/rpc_meta/b", "x" * 255]
    for number, name in enumerate(names):
        metadata.publish(name, Entry("h:1", number))
    assert [metadata.resolve(name).epoch for name in names] == list(range(len(names)))
    metadata.close()


def test_clusters_do_not_see_each_other(server: Server) -> None:
    one = open_metadata(server.where, cluster="one")
    two = open_metadata(server.where, cluster="two")
    one.publish("node-0", HERE)
    for other in (two, open_metadata(server.where)):
        with pytest.raises(NotFoundError):
            other.resolve("node-0")
        other.close()
    one.close()


def test_a_name_outlives_its_time_as_long_as_its_engine_lives(server: Server) -> None:
    metadata = open_metadata(server.where)
    metadata.publish("node-0", HERE, ttl_s=1.0)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert metadata.resolve("node-0") == HERE
    metadata.close()


def test_a_killed_engine_leaves_nothing_behind(server: Server) -> None:
    with owner(server.where, "node-0", SHORT_TTL_S) as process:
        assert is_known(server.where, "node-0")
        process.kill()
        process.wait()
        took_s = wait_for("its name is gone", lambda: not is_known(server.where, "node-0"))
    # etcd counts in seconds, and looks for what has expired twice a second.
    assert took_s < SHORT_TTL_S + 10


def test_an_engine_that_ends_takes_its_name_along(server: Server) -> None:
    with owner(server.where, "node-0", 3600) as process:
        assert is_known(server.where, "node-0")
        process.communicate(timeout=60)
        assert not is_known(server.where, "node-0")


def test_the_newest_of_a_name_wins_and_the_older_one_says_so_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = open_metadata(server.where), open_metadata(server.where)
    old.publish("node-0", HERE, ttl_s=1.0)
    new.publish("node-0", THERE, ttl_s=3600)
    wait_for("the old one notices", lambda: "taken over" in caplog.text)
    assert "[fd00::2]:15002 (host2, pid 1)" in caplog.text
    old.withdraw("node-0")
    old.close()
    assert new.resolve("node-0") == THERE, "the old one does not remove it"
    assert caplog.text.count("taken over") == 1
    new.close()


def test_a_restarted_engine_takes_its_name_over_at_once(server: Server) -> None:
    with owner(server.where, "node-0", 3600) as process:
        process.kill()
        process.wait()
        metadata = open_metadata(server.where)
        assert metadata.resolve("node-0").epoch == 7, "the dead one's is there still"
        metadata.publish("node-0", THERE)
        assert metadata.resolve("node-0") == THERE
        metadata.close()


def test_a_server_that_restarts_has_the_names_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metadata = open_metadata(server.where)
    metadata.publish("node-0", HERE, ttl_s=3.0)
    server.stop()
    with pytest.raises(TransientError):
        metadata.resolve("node-0")
    wait_for("a renewal fails", lambda: "cannot renew" in caplog.text)
    server.start()
    wait_for("it is renewed", lambda: "is renewed again" in caplog.text)
    wait_for("it is known", lambda: is_known(server.where, "node-0"))
    assert caplog.text.count("cannot renew") == 1, "one outage, one line"
    assert str(server.port) in caplog.text
    metadata.close()


def test_an_etcd_that_lost_everything_has_the_names_again(etcd: Etcd) -> None:
    metadata = open_metadata(etcd.where)
    metadata.publish("node-0", HERE, ttl_s=3.0)
    etcd.lose_everything()
    etcd.start()
    wait_for("it is known again", lambda: is_known(etcd.where, "node-0"))
    metadata.close()


def test_an_entry_that_somebody_removed_comes_back(server: Server) -> None:
    metadata = open_metadata(server.where)
    metadata.publish("node-0", HERE, ttl_s=1.0)
    key = "mooncake-hicache/engine/node-0"
    if isinstance(metadata, EtcdMetadata):
        metadata._calls.call(lambda client: client.delete(key))
    else:
        assert ask(f"{server.where}?key={key}", "DELETE")[0] == 200
    wait_for("it is known again", lambda: is_known(server.where, "node-0"))
    metadata.close()


def test_many_threads_may_publish_and_resolve(server: Server) -> None:
    metadata = open_metadata(server.where)
    failures: list[Error] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                metadata.publish(f"node-{number}", Entry("h:1", turn))
                assert metadata.resolve(f"node-{number}").epoch == turn
            metadata.withdraw(f"node-{number}")
        except Error as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not any(is_known(server.where, f"node-{number}") for number in range(6))
    metadata.close()


# ---- what others wrote


def test_an_engine_of_the_original_is_named_as_one(server: Server) -> None:
    segment = b'{"name":"node-0","protocol":"tcp","buffers":[],"tcp_data_port":16705}'
    keep_raw(server.where, "mooncake/ram/node-0", segment)
    keep_raw(server.where, "mooncake-hicache/engine/node-1", segment)
    metadata = open_metadata(server.where)
    for name in ("node-0", "node-1"):
        with pytest.raises(UnsupportedError, match=f"{name}.*original Mooncake"):
            metadata.resolve(name)
    metadata.close()


def test_what_is_no_entry_is_refused(server: Server) -> None:
    metadata = open_metadata(server.where)
    for value in (b"x", b"[]", b"{}", b"\xff", b'{"format": "mooncake-hicache", "version": 1}'):
        keep_raw(server.where, "mooncake-hicache/engine/node-0", value)
        with pytest.raises(CorruptError, match=f"node-0.*{server.port}|{server.port}.*node-0"):
            metadata.resolve("node-0")
    metadata.close()


# ---- when nobody answers


@pytest.mark.parametrize("scheme", ["http", "etcd"])
def test_a_server_that_is_not_there_is_named_with_its_cause(scheme: str) -> None:
    port = free_port()
    metadata = open_metadata(f"{scheme}://127.0.0.1:{port}")
    began = time.monotonic()
    for call in (lambda: metadata.resolve("x"), lambda: metadata.publish("x", HERE)):
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: Connection refused"):
            call()
    metadata.close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("scheme", ["http", "etcd"])
def test_a_server_that_does_not_answer_costs_the_time_limit_only(scheme: str) -> None:
    with silent_port() as port:
        metadata = open_metadata(f"{scheme}://127.0.0.1:{port}", timeout_s=1.0)
        began = time.monotonic()
        with pytest.raises(
            (TimeoutError_, UnavailableError), match=f"127.0.0.1:{port}.*within|no a"
        ):
            metadata.resolve("x")
        assert time.monotonic() - began < 4
        metadata.close()


@pytest.mark.parametrize("scheme", ["http", "etcd"])
def test_by_default_a_call_ends_within_five_seconds(scheme: str) -> None:
    with silent_port() as port:
        metadata = open_metadata(f"{scheme}://127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(TransientError):
            metadata.resolve("x")
        assert 3 < time.monotonic() - began < 15
        metadata.close()


@pytest.mark.parametrize("scheme", ["http", "etcd"])
def test_a_host_that_does_not_exist_is_named(scheme: str) -> None:
    metadata = open_metadata(f"{scheme}://no-such-host.invalid:2379")
    with pytest.raises(TransientError, match=r"no-such-host\.invalid:2379"):
        metadata.resolve("x")
    metadata.close()


@pytest.mark.parametrize("scheme", ["http", "etcd"])
def test_something_else_at_the_port_is_no_metadata_server(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            for reply in (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]", b"SSH-2.0-x\r\n"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        metadata = open_metadata(f"{scheme}://127.0.0.1:{port}", timeout_s=2.0)
        for _ in range(2):
            with pytest.raises((UnavailableError, CorruptError), match=f"127.0.0.1:{port}"):
                metadata.resolve("x")
        thread.join()
        metadata.close()


def test_an_answer_without_end_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b"x" * 65536)
                except OSError:
                    return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        metadata = open_metadata(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="does not end"):
            metadata.resolve("x")
        thread.join()
        metadata.close()


def test_of_several_endpoints_one_that_answers_is_enough(etcd: Etcd) -> None:
    with silent_port() as silent:
        where = f"etcd://127.0.0.1:{free_port()},127.0.0.1:{silent},127.0.0.1:{etcd.port}"
        metadata = open_metadata(where, timeout_s=30.0)
        metadata.publish("node-0", HERE)
        began = time.monotonic()
        assert metadata.resolve("node-0") == HERE
        assert time.monotonic() - began < 5, "the one that answered is asked first"
        metadata.close()


# ---- the original's server


def test_the_originals_server_keeps_names_without_a_time_to_live(
    old_server: OldServer, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = open_metadata(old_server.where)
    metadata.publish("node-0", HERE, ttl_s=1.0)
    metadata.publish("node-1", HERE, ttl_s=1.0)
    assert metadata.resolve("node-0") == HERE
    assert caplog.text.count("does not know times to live") == 1
    old_server.kept.clear()  # As after a restart.
    for name in ("node-0", "node-1"):
        wait_for("it is known again", lambda name=name: is_known(old_server.where, name))
    old_server.kept["mooncake-hicache/engine/node-1"] = b"{}"
    wait_for("that is noticed", lambda: "taken over" in caplog.text)
    metadata.close()
    assert old_server.kept == {"mooncake-hicache/engine/node-1": b"{}"}


# ---- without a server


def test_without_a_server_names_are_addresses() -> None:
    metadata = open_metadata("P2PHANDSHAKE")
    assert metadata.resolve("10.0.0.1:15001") == Entry("10.0.0.1:15001")
    assert metadata.resolve("[fd00::1]:15001").address == "[fd00::1]:15001"
    assert metadata.resolve("localhost:1").epoch == 0
    metadata.publish("anything", HERE)
    for name in ("host", "fd00::1:15001", "", ":1", "h:0", "h:65536", "[h]:1", "h:1x", "a b:1"):
        with pytest.raises(InvalidArgumentError, match="P2PHANDSHAKE"):
            metadata.resolve(name)
    metadata.withdraw("anything")
    metadata.close()


# ---- mistakes


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("redis://127.0.0.1:6379", UnsupportedError, "P2PHANDSHAKE"),
        ("https://h/metadata", UnsupportedError, "https"),
        ("consul://h:1", InvalidArgumentError, "etcd://host:port"),
        ("http://", InvalidArgumentError, "host"),
        ("http://h:x/metadata", InvalidArgumentError, "no port"),
        ("http://[fd00::1/metadata", InvalidArgumentError, "URL"),
        ("http://user:pw@h/metadata", InvalidArgumentError, "without user"),
        ("http://h/metadata?key=x", InvalidArgumentError, "query"),
        ("etcd://", InvalidArgumentError, "no host"),
        ("etcd://a:1,,b:1", InvalidArgumentError, "no host"),
        ("p2phandshake", None, ""),  # The name of an etcd, as in the original.
        ("", InvalidArgumentError, "no host"),
        (",".join(["h"] * 17), InvalidArgumentError, "at most 16"),
    ],
)
def test_addresses_of_no_server_are_refused(
    where: str, error: type[Error] | None, told: str
) -> None:
    if error is None:
        open_metadata(where).close()
        return
    with pytest.raises(error, match=told):
        open_metadata(where)


def test_addresses_are_completed() -> None:
    metadata = HttpMetadata("http://h")
    assert metadata._url == "http://h:80/metadata"
    metadata.close()
    metadata = HttpMetadata("http://[fd00::1]:8080/meta/x")
    assert metadata._url == "http://[fd00::1]:8080/meta/x"
    metadata.close()
    assert [str(one) for one in EtcdMetadata("h,[::1]/")._calls.endpoints] == [
        "h:2379",
        "[::1]:2379",
    ]


@pytest.mark.parametrize(
    ("name", "entry", "ttl_s"),
    [
        ("", HERE, 10),
        ("x" * 256, HERE, 10),
        ("a\nb", HERE, 10),
        (" a", HERE, 10),
        ("\ud800", HERE, 10),
        ("a", Entry("nowhere"), 10),
        ("a", Entry("h:1", -1), 10),
        ("a", Entry("h:1", 1 << 64), 10),
        ("a", HERE, 0.5),
        ("a", HERE, 1e9),
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_sent(
    name: str, entry: Entry, ttl_s: float
) -> None:
    metadata = open_metadata(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InvalidArgumentError):
        metadata.publish(name, entry, ttl_s)
    metadata.close()
