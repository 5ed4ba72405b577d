"""The original's REST service over a real node: its answers, its bounds, its life."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.store.rest_servers import Caller, RestProcess, serving_with
from tests.compat.store.stores import MiB, machine, noise, opened, running_master
from tests.master.masters import MasterProcess
from tests.metadata.servers import ask, free_port, silent_port
from tests.processes import wait_for

SUCCESS = {"status": "success"}
MISSING = (404, {"error": "Key not found"})
NAME_SIZE_MAX = 65536
SEED = int(os.environ.get("HICACHE_SEED", "1"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with machine() as folder:
        yield folder


@pytest.fixture(scope="module")
def master(folder: Path) -> Iterator[str]:
    with running_master(folder) as address:
        yield address


@pytest.fixture(scope="module")
def rest(folder: Path, master: str) -> Iterator[RestProcess]:
    with RestProcess(folder, master) as rest:
        rest.wait_until_it_answers()
        yield rest


@pytest.fixture(scope="module")
def store(master: str) -> Iterator[MooncakeDistributedStore]:
    with opened(master) as store:
        yield store


def why(answer: tuple[int, Any]) -> str:
    """Return the reason of an answer that is none of success."""
    assert list(answer[1]) == ["error"], answer
    return str(answer[1]["error"])


# ---- what the original answers


def test_objects_are_put_read_found_and_removed_as_by_the_original(rest: RestProcess) -> None:
    assert rest.get("one") == MISSING
    assert rest.exist("one") == (200, {"exists": False})
    assert rest.put("one", "text, ünïcödé") == (200, SUCCESS)
    assert rest.put("one", "another") == (200, SUCCESS)  # It stays as it is.
    assert rest.get("one") == (200, "text, ünïcödé".encode())
    assert ask(rest.url + "/api/get/one")[2]["content-type"] == "application/octet-stream"
    assert rest.exist("one") == (200, {"exists": True})
    assert rest.remove("one") == (200, SUCCESS)
    assert rest.remove("one") == MISSING
    assert rest.get("one") == MISSING
    for name in ("a", "b", "c"):
        assert rest.put(name, name) == (200, SUCCESS)
    assert rest.ask("/api/remove_all", "DELETE") == (200, {"status": "success removed 3 keys"})
    assert rest.get("a") == MISSING


@pytest.mark.parametrize(
    "key", ["game/g1/epoch/1", "a b", "100%", "%41", "ä/ö?ü#", "..", "a/../b", "x" * 2000, "\x01"]
)
def test_a_key_may_have_any_characters(rest: RestProcess, key: str) -> None:
    assert rest.put(key, f"of {key}") == (200, SUCCESS)
    assert rest.get(key) == (200, f"of {key}".encode())
    assert rest.exist(key) == (200, {"exists": True})
    assert rest.remove(key) == (200, SUCCESS)
    assert rest.exist(key) == (200, {"exists": False})


@pytest.mark.parametrize("key", ["game/g1/seq/0", "a//b", "/a/", "a+b&c=d:@$,;!*'()~"])
def test_a_key_in_a_path_may_stay_as_it_is(rest: RestProcess, key: str) -> None:
    assert rest.put(key, "state") == (200, SUCCESS)
    assert rest.ask(f"/api/get/{key}") == (200, b"state")
    assert rest.ask(f"/api/exist/{key}") == (200, {"exists": True})
    assert rest.ask(f"/api/remove/{key}", "DELETE") == (200, SUCCESS)


def test_other_programs_see_its_objects_and_it_sees_theirs(
    rest: RestProcess, store: MooncakeDistributedStore
) -> None:
    value = noise(3 * MiB).tobytes()
    assert store.put("from a program", value) == 0
    assert rest.get("from a program") == (200, value)
    assert rest.put("from the service", "text") == (200, SUCCESS)
    assert store.get("from the service") == b"text"
    assert store.remove("from a program") == store.remove("from the service") == 0


def test_a_setting_of_the_command_line_counts_more_than_the_file(
    folder: Path, master: str, store: MooncakeDistributedStore
) -> None:
    config = folder / "rest.json"
    names = {"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE"}
    text = json.dumps({**names, "master_server_address": master, "tenant_id": "of the file"})
    config.write_text(text, encoding="utf-8")
    with RestProcess(folder, "", f"--config={config}", "-Dtenant_id=mine") as rest:
        rest.wait_until_it_answers()
        assert rest.put("same key", "mine") == (200, SUCCESS)
        assert store.is_exist("same key") == 0
        with opened(master, tenant_id="mine") as mine:
            assert mine.get("same key") == b"mine"
        assert rest.stop() == 0


# ---- what is wrong


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\xfd", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"9" * 10_000, "no"),
        (b"[]", "no object"),
        (b"{}", "key"),
        (b'{"key": "k"}', "value"),
        (b'{"key": "", "value": "v"}', "not empty"),
        (b'{"key": "k", "value": ""}', "not empty"),
        (b'{"key": "k", "value": null}', "texts"),
        (b'{"key": 1, "value": "v"}', "texts"),
        (b'{"key": "k", "value": {"a": 1}}', "texts"),
        (b'{"key": "\\ud800", "value": "v"}', "the key is no text"),
        (b'{"key": "k", "value": "\\ud800"}', "the value is no text"),
        (json.dumps({"key": "k" * (NAME_SIZE_MAX + 1), "value": "v"}).encode(), "65536"),
    ],
    ids=range(16),
)
def test_a_put_that_makes_no_sense_is_400_with_the_reason(
    rest: RestProcess, body: bytes, reason: str
) -> None:
    answer = rest.ask("/api/put", "PUT", body)
    assert answer[0] == 400
    assert reason in why(answer)


@pytest.mark.parametrize("path", ["/", "/api", "/api/put/x", "/api/get/", "/api/nothing", "/../x"])
def test_an_unknown_path_is_404_in_json(rest: RestProcess, path: str) -> None:
    answer = rest.ask(path)
    assert answer[0] == 404
    assert "nothing at" in why(answer)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/api/put", "PUT"),
        ("PUT", "/api/get/x", "GET, HEAD"),
        ("GET", "/api/remove/x", "DELETE"),
        ("GET", "/api/remove_all", "DELETE"),
        ("GET", "/api/mount", "POST"),
        ("OPTIONS", "/api/put", "PUT"),
    ],
)
def test_another_method_is_405_and_says_which_there_is(
    rest: RestProcess, method: str, path: str, allowed: str
) -> None:
    status, body, headers = ask(rest.url + path, method, b"" if method != "GET" else None)
    assert (status, headers["allow"]) == (405, allowed)
    assert allowed in why((status, json.loads(body)))


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("mount", b'{"size": 1048576}', 501, "pool_size"),
        ("mount_shm", b'{"name": "x", "size": 1048576}', 501, "pool_size"),
        ("unmount", b'{"segment_ids": ["x"]}', 501, "pool_size"),
        ("unmount_shm", b'{"segment_ids": ["x"]}', 501, "pool_size"),
        ("reconfigure", b'{"mode": "decode", "path": "/x", "size": 1}', 501, "pool_size"),
        ("reconfigure", b'{"mode": "prefill"}', 200, {**SUCCESS, "mode": "prefill"}),
        ("reconfigure", b'{"mode": "both"}', 400, "Invalid mode"),
        ("reconfigure", b"x", 400, "no JSON"),
        ("unmount_local_disk", b"{}", 200, SUCCESS),
        ("unmount_local_disk", b'{"grace_period_seconds": 30}', 200, SUCCESS),
        ("unmount_local_disk", b'{"grace_period_seconds": 30000}', 400, "3600"),
        ("unmount_local_disk", b'{"grace_period_seconds": true}', 400, "3600"),
        ("unmount_local_disk", b"", 400, "no JSON"),
    ],
)
def test_segments_that_are_asked_for_are_501_and_no_segments_are_success(
    rest: RestProcess, path: str, body: bytes, status: int, expected: Any
) -> None:
    answer = rest.ask(f"/api/{path}", "POST", body)
    assert answer[0] == status
    assert answer[1] == expected if status == 200 else expected in why(answer)


def test_an_ssd_is_not_let_go_of_and_who_can_do_it_is_said(
    store: MooncakeDistributedStore,
) -> None:
    with serving_with(store, has_ssd=True) as rest:
        answer = rest.ask("/api/unmount_local_disk", "POST", b"{}")
        assert answer[0] == 501
        assert "/api/drain" in why(answer)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--host=0.0.0.0"], "--token-file"),
        (["--host=::"], "--token-file"),
        (["--token-file=/nowhere/at/all"], "/nowhere/at/all"),
        (["--config=/nowhere/at/all"], "/nowhere/at/all"),
        (["--port=70000"], "--port=70000"),
        (["-Dno_such=1"], "no_such"),
        (["-Dtenant_id"], "NAME=VALUE"),
        (["-Dglobal_segment_size=50%"], "global_segment_size"),
        (["-Denable_ssd_offload=true"], "ssd_offload_path"),
        (["-Dclient_http_port=x"], "x"),
        (["-Dglobal_segment_size=-5"], "global_segment_size"),
        (["--config={config}"], "a size is negative"),
        (["-Dmaster_server_address=etcd://1.2.3.4"], "host:port"),
    ],
    ids=range(13),
)
def test_what_cannot_become_right_ends_the_program_at_once(
    folder: Path, master: str, flags: list[str], reason: str
) -> None:
    config = folder / "negative.json"
    names = {"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE"}
    names |= {"master_server_address": master}
    config.write_text(json.dumps({**names, "global_segment_size": -5}), encoding="utf-8")
    flags = [flag.format(config=config) for flag in flags]
    with RestProcess(folder, master, "--max-wait-time=100000", *flags) as rest:
        assert rest.ended() == 1
        assert reason in rest.log
        assert "Traceback" not in rest.log


def test_memory_that_is_not_there_is_not_waited_for() -> None:
    with machine() as folder, running_master(folder) as master:
        flags = ("--max-wait-time=100000", "-Dglobal_segment_size=900000GB")
        with RestProcess(folder, master, *flags) as rest:
            assert rest.ended() == 1
            assert "is more than" in rest.log


def test_a_port_that_is_taken_is_named_with_the_remedy(folder: Path, rest: RestProcess) -> None:
    nobody = f"127.0.0.1:{free_port()}"  # It is known before the master is looked for.
    with RestProcess(folder, nobody, "--max-wait-time=100000", f"--port={rest.port}") as other:
        assert other.ended() == 1
        for text in ("mc_store_rest_server", str(rest.port), "--port", "metadata server"):
            assert text in other.log
    assert rest.exist("x")[0] == 200


def test_the_environment_that_deployments_set_is_understood(
    folder: Path, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder / "of-the-environment.json"
    names = {"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE"}
    text = json.dumps({**names, "master_server_address": master, "tenant_id": "of the variable"})
    config.write_text(text, encoding="utf-8")
    monkeypatch.setenv("MOONCAKE_OFFLOAD_ENABLED", "true")  # Without a folder that is a mistake.
    with RestProcess(folder, master) as rest:
        assert rest.ended() == 1
        assert "ssd_offload_path" in rest.log
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(config))  # It counts more than all of them.
    with RestProcess(folder, master) as rest, opened(master, tenant_id="of the variable") as store:
        rest.wait_until_it_answers()
        assert rest.put("k", "v") == (200, SUCCESS)
        assert store.remove("k") == 0
        assert rest.stop() == 0


# ---- who may ask


def test_nothing_is_read_or_changed_without_the_token(folder: Path, master: str) -> None:
    token_file = folder / "token"
    token_file.write_text("sésame-öffne\nnot this\n", encoding="utf-8")
    right = "Bearer sésame-öffne".encode()
    flags = (f"--token-file={token_file}", "-Dtenant_id=of the token")
    with RestProcess(folder, master, *flags) as rest:
        rest.wait_until_it_answers()

        def status(method: str, path: str, authorization: bytes | None, body: bytes = b"") -> int:
            line = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=30)
            line.putrequest(method, path)
            if authorization is not None:
                line.putheader("Authorization", authorization)
            line.putheader("Content-Length", str(len(body)))
            line.endheaders(body)
            answer = line.getresponse()
            if answer.status == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "token" in json.loads(answer.read())["error"]
            line.close()
            return answer.status

        put = ("PUT", "/api/put", b'{"key": "k", "value": "v"}')
        assert status(*put[:2], right, put[2]) == 200
        for wrong in (
            None,
            b"",
            b"Bearer",
            b"Bearer ",
            b"sesame",
            right[:-1],
            right + b"x",
            right.removeprefix(b"Bearer "),
            right.replace("é".encode(), b"\xe9"),
            b"\xff\xfe\x80",
            b"Bearer not this",
        ):
            assert status("DELETE", "/api/remove_all", wrong) == 401, wrong
            assert status("GET", "/api/get/k", wrong) == 401, wrong
            assert status("GET", "/api/no/such/path", wrong) == 401, wrong
        assert status("GET", "/api/get/k", right) == 200
        assert status("DELETE", "/api/remove_all", right) == 200
        assert rest.stop() == 0


# ---- bounds


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
    import gzip

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


# ---- many at once


def in_threads(count: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(work, number) for number in range(count)]:
            done.result()


def test_many_callers_at_once_see_what_each_has_done(rest: RestProcess) -> None:
    def work(number: int) -> None:
        chance = random.Random(SEED * 1000 + number)
        known: dict[str, bytes] = {}  # The oracle: nobody else has these keys.
        for _ in range(60):
            key = f"caller/{number}/{chance.randrange(6)}"
            act = chance.choice(["put", "put", "get", "get", "exist", "remove"])
            if act == "put":
                value = str(chance.random()) * chance.choice([1, 1, 50, 3000])
                assert rest.put(key, value) == (200, SUCCESS)
                known.setdefault(key, value.encode())
            elif act == "get":
                assert rest.get(key) == ((200, known[key]) if key in known else MISSING)
            elif act == "exist":
                assert rest.exist(key) == (200, {"exists": key in known})
            else:
                found = known.pop(key, None)
                assert rest.remove(key) == (MISSING if found is None else (200, SUCCESS))

    print("HICACHE_SEED", SEED)
    in_threads(8, work)
    assert rest.ask("/api/remove_all", "DELETE")[0] == 200


def test_a_read_that_races_a_removal_is_the_value_or_404(rest: RestProcess) -> None:
    value = "v" * 50_000
    is_over = threading.Event()
    seen: set[int] = set()

    def work(number: int) -> None:
        if number == 0:
            try:
                for _ in range(150):
                    assert rest.put("contested", value) == (200, SUCCESS)
                    assert rest.remove("contested") == (200, SUCCESS)
            finally:
                is_over.set()
        while not is_over.is_set():
            answer = rest.get("contested")
            assert answer in ((200, value.encode()), MISSING)
            seen.add(answer[0])

    in_threads(4, work)
    assert seen <= {200, 404}
    assert seen


def test_each_caller_is_told_of_its_own_failure(rest: RestProcess) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            size = NAME_SIZE_MAX + 1 + number * 20 + turn
            answer = rest.put("k" * size, "v")
            assert answer[0] == 400
            assert f"has {size} bytes" in why(answer)

    in_threads(6, work)


# ---- life


def test_without_a_node_calls_are_500_and_say_so(folder: Path) -> None:
    with running_master(folder) as master, opened(master) as store, serving_with(store) as rest:
        assert rest.put("k", "v") == (200, SUCCESS)
        store.close()
        for answer in (rest.put("k", "v"), rest.get("k"), rest.exist("k"), rest.remove("k")):
            assert answer[0] == 500
            assert "close() was called" in why(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_the_end_requests_under_way_are_answered(
    folder: Path, master: str, number: signal.Signals, store: MooncakeDistributedStore
) -> None:
    with RestProcess(folder, master) as rest:
        rest.wait_until_it_answers()
        kept = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=30)
        kept.request("GET", "/api/exist/x")
        assert kept.getresponse().read() == b'{"exists": false}'
        with rest.half_a_put(f"last {number}", "x" * 100) as (line, rest_of_it):
            # Sent first and answered last: when that is through, the half has been seen.
            assert rest.exist("x")[0] == 200
            rest.process.send_signal(number)
            wait_for("nobody else is let in", lambda: is_refused(rest.port))
            kept.request("GET", "/api/exist/x")
            refused = kept.getresponse()
            assert (refused.status, b"ending" in refused.read()) == (503, True)
            kept.close()
            assert rest.process.poll() is None
            line.sendall(rest_of_it)
            assert line.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert rest.ended() == 0
        assert "Traceback" not in rest.log
    assert store.get(f"last {number}") == b"x" * 100


def test_a_request_that_never_ends_does_not_keep_the_program(folder: Path, master: str) -> None:
    with RestProcess(folder, master) as rest:
        rest.wait_until_it_answers()
        with rest.half_a_put("never", "x" * 100):
            assert rest.exist("x")[0] == 200
            assert rest.stop() == 0


def test_who_waits_for_a_master_can_be_ended(folder: Path) -> None:
    with silent_port() as port, RestProcess(folder, f"127.0.0.1:{port}") as rest:
        # It takes connections, so a node is looked for, which finds no master.
        wait_for("a node is being started", lambda: any(folder.glob(f"store-127.0.0.1-{port}/*")))
        assert rest.stop() == 0
    with RestProcess(folder, f"127.0.0.1:{free_port()}") as rest:
        wait_for("it waits", lambda: "Start it (mooncake_master)" in rest.log)
        assert is_refused(rest.port)
        assert rest.stop() == 0


def test_a_master_that_comes_later_is_waited_for(folder: Path) -> None:
    port = free_port()
    with RestProcess(folder, f"127.0.0.1:{port}", "--max-wait-time=100000") as rest:
        wait_for("it waits", lambda: "Start it (mooncake_master)" in rest.log)
        master = MasterProcess(folder / "later.log", port=port)
        try:
            rest.wait_until_it_answers()
            assert rest.put("k", "v") == (200, SUCCESS)
            assert rest.stop() == 0
        finally:
            master.stop()


def test_no_master_in_time_ends_the_program_with_host_port_and_cause(folder: Path) -> None:
    port = free_port()
    with RestProcess(folder, f"127.0.0.1:{port}", "--max-wait-time=0") as rest:
        assert rest.ended() == 1
        assert f"127.0.0.1:{port}" in rest.log
        assert "refused" in rest.log


@contextlib.contextmanager
def unread_answer(rest: Caller, key: str) -> Iterator[socket.socket]:
    """A connection that has asked for a large object and does not read it."""
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", rest.port))
        line.sendall(f"GET /api/get/{key} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert line.recv(20).startswith(b"HTTP/1.1 200")
        yield line


def is_refused(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) != 0
