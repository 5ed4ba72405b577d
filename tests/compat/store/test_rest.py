"""The original's REST service over a real node: what it answers, and to whom."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.store.rest_servers import SUCCESS, RestProcess, serving_with, why
from tests.compat.store.stores import MiB, noise, opened, running_master
from tests.metadata.servers import ask
from tests.processes import wait_for

MISSING = (404, {"error": "Key not found"})
NAME_SIZE_MAX = 65536
SEED = int(os.environ.get("HICACHE_SEED", "1"))


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


# ---- without a node


def test_without_a_node_calls_are_500_and_say_so(folder: Path) -> None:
    with running_master(folder) as master, opened(master) as store, serving_with(store) as rest:
        assert rest.put("k", "v") == (200, SUCCESS)
        store.close()
        for answer in (rest.put("k", "v"), rest.get("k"), rest.exist("k"), rest.remove("k")):
            assert answer[0] == 500
            assert "close() was called" in why(answer)


def test_a_node_that_dies_is_500_until_another_one_answers(folder: Path) -> None:
    with running_master(folder) as master, RestProcess(folder, master) as rest:
        rest.wait_until_it_answers()
        assert rest.put("lost", "v") == (200, SUCCESS)
        with opened(master) as store:
            node = store.stats()["node"]
            assert node is not None
            os.kill(node["pid"], signal.SIGKILL)

        def is_stored() -> bool:
            answer = rest.put("kept", "v")
            assert answer == (200, SUCCESS) or (answer[0] == 500 and why(answer))
            return answer[0] == 200

        wait_for("another node", is_stored)
        assert rest.get("kept") == (200, b"v")
        assert rest.get("lost") == MISSING
        assert rest.stop() == 0
