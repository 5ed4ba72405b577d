"""The HTTP metadata server: the original's protocol, and what is added to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mooncake_hicache.errors import InvalidArgumentError, IoError, NoSpaceError
from mooncake_hicache.metadata import Entry
from mooncake_hicache.metadata.http import TOKEN_ENVIRONMENT, HttpMetadata
from mooncake_hicache.metadata.server import MetadataServer, listen
from mooncake_hicache.metadata.table import KEY_SIZE_MAX, Limits, Outcome, Table, tag_of
from tests.metadata.servers import OurServer, ask
from tests.processes import wait_for

HERE = Entry("10.0.0.1:15001", 1)


def url(server: OurServer | MetadataServer, key: str, **query: str) -> str:
    where = server.where if isinstance(server, OurServer) else server.url
    return f"{where}?{urllib.parse.urlencode({'key': key, **query})}"


# ---- the original's protocol


def test_values_are_put_read_replaced_and_deleted(http_server: OurServer) -> None:
    place = url(http_server, "mooncake/ram/10.0.0.1:12345")
    assert ask(place)[:2] == (404, b"metadata not found")
    assert ask(place, "DELETE")[:2] == (404, b"metadata not found")
    assert ask(place, "PUT", b'{"a": 1}')[:2] == (200, b"metadata updated")
    status, body, headers = ask(place)
    assert (status, body) == (200, b'{"a": 1}')
    assert headers["content-type"].startswith("application/json")
    assert ask(place, "PUT", b"\x00\xff")[:2] == (200, b"metadata updated")
    assert ask(place)[1] == b"\x00\xff"
    assert ask(place, "PUT", b"")[0] == 200
    assert ask(place)[:2] == (200, b"")
    assert ask(place, "DELETE")[:2] == (200, b"metadata deleted")
    assert ask(place)[0] == 404


def test_a_key_is_needed_and_other_methods_are_not_allowed(http_server: OurServer) -> None:
    for query in ("", "?key=", "?key=%20", "?other=x"):
        for method in ("GET", "PUT", "DELETE"):
            status, body, _ = ask(http_server.where + query, method, b"x")
            assert (status, body) == (400, b"metadata key is required")
    assert ask(url(http_server, "x"), "POST", b"x")[:2] == (405, b"Method not allowed")


def test_an_engines_own_address_is_not_replaced_by_another(http_server: OurServer) -> None:
    place = url(http_server, "mooncake/rpc_meta/10.0.0.1:12345")
    assert ask(place, "PUT", b"one")[:2] == (200, b"metadata updated")
    assert ask(place, "PUT", b"one")[:2] == (200, b"metadata unchanged")
    assert ask(place, "PUT", b"two")[:2] == (400, b"Duplicate rpc_meta key not allowed")
    assert ask(place)[1] == b"one"
    assert ask(place, "DELETE")[0] == 200
    assert ask(place, "PUT", b"two")[0] == 200


def test_health(http_server: OurServer) -> None:
    assert ask(http_server.where.replace("/metadata", "/health"))[:2] == (200, b"OK")
    assert ask(http_server.where.replace("/metadata", "/else"))[0] == 404


# ---- times to live and conditions


def test_a_time_to_live_ends_what_is_not_renewed(http_server: OurServer) -> None:
    place = url(http_server, "mooncake/rpc_meta/a")
    status, _, headers = ask(url(http_server, "mooncake/rpc_meta/a", ttl_s="0.5"), "PUT", b"one")
    assert (status, headers["hicache-ttl"]) == (200, "0.5")
    wait_for("it is gone", lambda: ask(place)[0] == 404)
    status, _, headers = ask(place, "PUT", b"two")
    assert (status, "hicache-ttl" in headers) == (200, False)


@pytest.mark.parametrize("ttl_s", ["", "x", "0", "-1", "nan", "inf", "86401", "1e999"])
def test_times_to_live_that_are_none_are_refused(http_server: OurServer, ttl_s: str) -> None:
    status, body, _ = ask(url(http_server, "a", ttl_s=ttl_s), "PUT", b"x")
    assert (status, b"ttl_s" in body) == (400, True)
    assert ask(url(http_server, "a"))[0] == 404


def test_conditions_keep_others_values_safe(http_server: OurServer) -> None:
    place = url(http_server, "a")
    assert ask(place, "PUT", b"one", If_Match=tag_of(b"one"))[0] == 412, "there is nothing"
    status, _, headers = ask(place, "PUT", b"one", If_None_Match="*")
    assert (status, headers["etag"]) == (200, tag_of(b"one"))
    assert ask(place)[2]["etag"] == tag_of(b"one")
    assert ask(place, "PUT", b"two", If_None_Match="*")[0] == 412
    assert ask(place, "PUT", b"two", If_Match=tag_of(b"three"))[0] == 412
    assert ask(place, "DELETE", If_Match=tag_of(b"three"))[0] == 412
    assert ask(place, "PUT", b"x", If_None_Match='"x"')[0] == 400
    assert ask(place)[1] == b"one"
    assert ask(place, "PUT", b"two", If_Match=tag_of(b"one"))[0] == 200
    assert ask(place, "DELETE", If_Match=tag_of(b"two"))[0] == 200


# ---- limits and the token


@contextmanager
def serving(limits: Limits, token: str = "") -> Iterator[MetadataServer]:
    with MetadataServer(listen("127.0.0.1", 0), limits=limits, token=token) as server:
        yield server


def test_what_is_too_large_is_refused_and_the_server_lives_on() -> None:
    with serving(Limits(value_size_bytes=100, total_size_bytes=300, count=3)) as server:
        assert ask(url(server, "a"), "PUT", b"x" * 100)[0] == 200
        assert ask(url(server, "a"), "PUT", b"x" * 101)[0] == 413
        assert ask(url(server, "a"), "PUT", b"x" * 100_000)[0] == 413
        assert ask(url(server, "k" * KEY_SIZE_MAX), "PUT", b"")[0] == 507, "1024 of 300 bytes"
        assert ask(url(server, "k" * (KEY_SIZE_MAX + 1)), "PUT", b"")[0] == 413
        assert ask(url(server, "k" * 100_000))[0] in (400, 414)
        for key in ("b", "c"):
            assert ask(url(server, key), "PUT", b"x")[0] == 200
        status, body, _ = ask(url(server, "d"), "PUT", b"")
        assert (status, body) == (507, b"the metadata server is full")
        assert ask(url(server, "a"))[1] == b"x" * 100


def test_a_full_server_is_named_as_such() -> None:
    with serving(Limits(count=1)) as server:
        metadata = HttpMetadata(server.url)
        metadata.publish("node-0", HERE)
        with pytest.raises(NoSpaceError, match="raise its limits"):
            metadata.publish("node-1", HERE)
        assert metadata.resolve("node-0") == HERE
        metadata.close()


def test_garbage_and_half_requests_do_not_stop_it(http_server: OurServer) -> None:
    for raw in (b"\x00" * 100, b"GET\r\n\r\n", b"PUT /metadata?key=a HTTP/1.1\r\nContent-Len"):
        with socket.create_connection(("127.0.0.1", http_server.port)) as connection:
            connection.sendall(raw)
    connection = http.client.HTTPConnection("127.0.0.1", http_server.port, timeout=10)
    connection.putrequest("PUT", "/metadata?key=a")
    connection.putheader("Content-Length", "10")
    connection.endheaders(b"half")
    connection.close()
    assert ask(url(http_server, "a"))[0] == 404, "half a value is none"


def test_with_a_token_only_those_who_know_it_change_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Limits(), token="sesame") as server:
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}):
            for method in ("PUT", "DELETE"):
                assert ask(url(server, "a"), method, b"x", **headers)[0] == 401
        assert ask(url(server, "a"), "PUT", b"x", Authorization="Bearer sesame")[0] == 200
        assert ask(url(server, "a"))[:2] == (200, b"x"), "reading is free"
        without = HttpMetadata(server.url)
        with pytest.raises(InvalidArgumentError, match=TOKEN_ENVIRONMENT):
            without.publish("node-0", HERE)
        without.close()
        monkeypatch.setenv(TOKEN_ENVIRONMENT, "sesame")
        for metadata in (HttpMetadata(server.url), HttpMetadata(server.url, token="sesame")):
            metadata.publish("node-0", HERE)
            assert metadata.resolve("node-0") == HERE
            metadata.close()
        with pytest.raises(InvalidArgumentError, match="token"):
            HttpMetadata(server.url, token="a\nHost: b")


# ---- the table against an oracle


class TableMachine(RuleBasedStateMachine):
    """The table beside a dictionary that removes what has expired at each step."""

    keys = st.sampled_from(["a", "b", "c", "rpc"])
    values = st.sampled_from([b"", b"1", b"22", b"333333"])
    tags = st.none() | values.map(tag_of)

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(value_size_bytes=5, total_size_bytes=9, count=3)
        self.table = Table(self.limits)
        self.oracle: dict[str, tuple[bytes, float]] = {}
        self.now_s = 100.0

    @rule(step_s=st.sampled_from([0.0, 0.5, 1.0, 20.0]))
    def time_passes(self, step_s: float) -> None:
        self.now_s += step_s
        self.oracle = {k: v for k, v in self.oracle.items() if v[1] > self.now_s}

    @rule(
        key=keys,
        value=values,
        ttl_s=st.sampled_from([None, 0.5, 1.0, 15.0]),
        if_tag=tags,
        if_absent=st.booleans(),
        is_once=st.booleans(),
    )
    def put(
        self,
        key: str,
        value: bytes,
        ttl_s: float | None,
        if_tag: str | None,
        if_absent: bool,
        is_once: bool,
    ) -> None:
        found = self.table.put(
            key, value, self.now_s, ttl_s=ttl_s, if_tag=if_tag, if_absent=if_absent, is_once=is_once
        )
        old = self.oracle.get(key, (None, 0.0))[0]
        after = {**self.oracle, key: (value, self.now_s + (ttl_s or float("inf")))}
        if len(value) > 5:
            assert found is Outcome.TOO_LARGE
        elif (if_absent and old is not None) or (
            if_tag is not None and (old is None or tag_of(old) != if_tag)
        ):
            assert found is Outcome.REFUSED
        elif is_once and old not in (None, value):
            assert found is Outcome.DUPLICATE
        elif len(after) > 3 or sum(len(k) + len(v[0]) for k, v in after.items()) > 9:
            assert found is Outcome.FULL
        else:
            assert found is (Outcome.SAME if old == value else Outcome.DONE)
            self.oracle = after

    @rule(key=keys, if_tag=tags)
    def remove(self, key: str, if_tag: str | None) -> None:
        found = self.table.remove(key, self.now_s, if_tag=if_tag)
        if key not in self.oracle:
            assert found is Outcome.ABSENT
        elif if_tag is not None and tag_of(self.oracle[key][0]) != if_tag:
            assert found is Outcome.REFUSED
        else:
            assert found is Outcome.DONE
            del self.oracle[key]

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        for key in ("a", "b", "c", "rpc"):
            expected = self.oracle.get(key)
            assert self.table.get(key, self.now_s) == (expected[0] if expected else None)
        assert len(self.table) == len(self.oracle), "what was asked for and expired is removed"
        assert self.table.size_bytes == sum(len(k) + len(v[0]) for k, v in self.oracle.items())


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=40)


def test_what_expires_and_is_never_asked_for_makes_room() -> None:
    table = Table(Limits(count=100))
    for number in range(1000):
        assert table.put(f"{number}", b"x", number * 1.0, ttl_s=50) is Outcome.DONE
    assert len(table) <= 100


# ---- the command


@contextmanager
def command(*arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mooncake_hicache", "metadata", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("metadata server answers at http://"), line
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number: signal.Signals) -> None:
    with command("--port", "0") as process:
        where = url_of(process)
        assert urllib.parse.urlsplit(where).hostname == "127.0.0.1"
        metadata = HttpMetadata(where)
        metadata.publish("node-0", HERE)
        assert metadata.resolve("node-0") == HERE
        metadata.close()
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, out, errors) == (0, "metadata server stopped\n", "")


def test_the_command_over_ipv6_with_a_token_and_a_warning_without(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    token = tmp_path / "token"
    token.write_text("sesame\n")
    with command("--port", "0", "--host", "::", "--token-file", str(token)) as process:
        port = urllib.parse.urlsplit(url_of(process)).port
        metadata = HttpMetadata(f"http://[::1]:{port}", token="sesame")
        metadata.publish("node-0", HERE)
        metadata.close()
        assert ask(f"http://[::1]:{port}/metadata?key=a", "PUT", b"x")[0] == 401
        process.terminate()
        assert process.communicate(timeout=30)[1] == ""
    with command("--port", "0", "--host", "0.0.0.0") as process:
        url_of(process)
        process.terminate()
        assert "--token-file" in process.communicate(timeout=30)[1]


def test_limits_of_the_command_count() -> None:
    with command("--port", "0", "--value-size-max", "10B", "--count-max", "1") as process:
        where = url_of(process)
        assert ask(f"{where}?key=a", "PUT", b"x" * 11)[0] == 413
        assert ask(f"{where}?key=a", "PUT", b"x" * 10)[0] == 200
        assert ask(f"{where}?key=b", "PUT", b"x")[0] == 507


def test_mistakes_of_the_command_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for arguments, told in (
            (["--port", port], f"127.0.0.1:{port}: Address already in use"),
            (["--host", "192.0.2.1", "--port", "0"], "192.0.2.1:0: Cannot assign"),
            (["--host", "no-such-host.invalid"], "no-such-host.invalid"),
            (["--token-file", str(empty)], "no token"),
            (["--token-file", str(tmp_path / "none")], "cannot read the token file"),
            (["--value-size-max", "much"], "not a size"),
        ):
            with command(*arguments) as process:
                _, errors = process.communicate(timeout=30)
                assert (process.returncode, told in errors) == (1, True), errors
                assert "Traceback" not in errors


def test_a_server_that_cannot_listen_leaves_nothing_open() -> None:
    with pytest.raises(IoError):
        listen("192.0.2.1", 0)
    with listen("127.0.0.1", 0) as listener:
        server = MetadataServer(listener)
        assert server.is_running()
        server.close()
        server.close()
        assert not server.is_running()


def test_entries_are_json_that_people_can_read(http_server: OurServer) -> None:
    metadata = HttpMetadata(http_server.where)
    metadata.publish("node-0", HERE)
    tree = json.loads(ask(url(http_server, "mooncake-hicache/engine/node-0"))[1])
    assert tree["address"] == "10.0.0.1:15001"
    assert tree["version"] == 1
    metadata.close()
