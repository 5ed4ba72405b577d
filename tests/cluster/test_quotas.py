"""Quotas of a cluster: told to the master over HTTP, kept by every node."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mooncake_hicache import Code, Store
from tests.cluster.test_member import member, node_stats
from tests.master.masters import SECRET, MasterProcess
from tests.metadata.servers import direct
from tests.processes import wait_for

MiB = 1 << 20
PATH = "/api/v1/tenant_quotas"
PAGE = bytes(1 * MiB)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", SECRET)


@pytest.fixture
def token(tmp_path: Path) -> str:
    (tmp_path / "token").write_text("sesame\n")
    return f"--token-file={tmp_path / 'token'}"


@pytest.fixture
def master(tmp_path: Path, token: str) -> Iterator[MasterProcess]:
    started = MasterProcess(tmp_path / "master.log", token)
    yield started
    started.kill()


def ask(
    master: MasterProcess, method: str, tenant: str = "", body: Any = None, token: str = "sesame"
) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON of a request."""
    path = PATH + (f"?tenant_id={tenant}" if tenant else "")
    request = urllib.request.Request(
        master.url + path,
        method=method,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        data=None if body is None else json.dumps(body).encode(),
    )
    try:
        with direct.open(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def set_quota(master: MasterProcess, tenant: str, size_bytes: int) -> dict[str, Any]:
    status, answer = ask(master, "PUT", tenant, {"requested_quota_bytes": size_bytes})
    assert (status, answer["success"]) == (200, True), answer
    return dict(answer["data"])


def limit_of(store: Store, tenant: str) -> int | None:
    found = {one["tenant"]: one["limit_bytes"] for one in node_stats(store)["tenant_use"]}
    return found.get(tenant)


_numbers = itertools.count()


def flood(store: Store, tenant: str, count: int) -> list[str]:
    """Put pages that nobody has, and return their names."""
    keys = [f"page {next(_numbers)}" for _ in range(count)]
    pages = store.namespace({"tenant": tenant})
    for key in keys:
        assert int(pages.put_batch([key], [PAGE])[0]) == Code.OK
    return keys


def test_a_quota_is_of_all_nodes_together(master: MasterProcess, tmp_path: Path) -> None:
    with member(master.port, "one", tmp_path) as one, member(master.port, "two", tmp_path) as two:
        for store in (one, two):
            flood(store, "flood", 20)
        quiet = {store: flood(store, "quiet", 5) for store in (one, two)}
        told = set_quota(master, "flood", 16 * MiB)
        assert told["requested_quota_bytes"] == told["effective_quota_bytes"] == 16 * MiB
        assert told["has_explicit_policy"] is True
        # Pools of one size: each node keeps half of it.
        for store in (one, two):
            wait_for("a node that heard", lambda store=store: limit_of(store, "flood") == 8 * MiB)
            flood(store, "flood", 20)

        def is_told() -> bool:
            told_now = ask(master, "GET", "flood")[1]["data"]
            return bool(told_now["used_bytes"] == 16 * MiB and told_now["committed_count"] == 16)

        wait_for("what both use is told", is_told)
        told_now = ask(master, "GET", "flood")[1]["data"]
        assert told_now == {**told, "used_bytes": 16 * MiB, "committed_count": 16} | {
            "metadata_object_count": 16
        }
        for store, keys in quiet.items():
            assert store.namespace({"tenant": "quiet"}).exists_batch(keys).all()
        assert [one["tenant_id"] for one in ask(master, "GET")[1]["data"]] == ["flood"]
        assert ask(master, "DELETE", "flood")[0] == 200
        wait_for("no quota", lambda: all(limit_of(s, "flood") is None for s in (one, two)))
        wait_for("the master knows", lambda: ask(master, "GET", "flood")[0] == 404)
        assert ask(master, "GET") == (200, {"success": True, "data": []})


def test_a_node_that_comes_later_gets_the_quotas_and_all_shares_become_smaller(
    master: MasterProcess, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(member(master.port, "one", tmp_path))
        flood(one, "acme", 1)
        set_quota(master, "*", 12 * MiB)
        wait_for("all of it", lambda: limit_of(one, "acme") == 12 * MiB)
        two = stack.enter_context(member(master.port, "two", tmp_path))
        flood(two, "acme", 1)
        for store in (one, two):
            wait_for("a half each", lambda store=store: limit_of(store, "acme") == 6 * MiB)


def test_what_the_master_was_told_counts_more_than_a_nodes_options(
    master: MasterProcess, tmp_path: Path
) -> None:
    with member(master.port, "one", tmp_path, quotas="acme=4MiB,labs=2MiB") as one:
        flood(one, "acme", 1)
        flood(one, "labs", 1)
        assert limit_of(one, "acme") == 4 * MiB
        wait_for("the option is shown", lambda: ask(master, "GET", "acme")[0] == 200)
        shown = ask(master, "GET", "acme")[1]["data"]
        assert (shown["requested_quota_bytes"], shown["has_explicit_policy"]) == (4 * MiB, False)
        set_quota(master, "acme", 8 * MiB)
        wait_for("the cluster's", lambda: limit_of(one, "acme") == 8 * MiB)
        assert limit_of(one, "labs") == 2 * MiB
        assert ask(master, "DELETE", "acme")[0] == 200
        wait_for("its own again", lambda: limit_of(one, "acme") == 4 * MiB)
        assert ask(master, "DELETE", "acme")[0] == 404


def test_a_master_that_was_restarted_learns_the_quotas_from_the_nodes(
    master: MasterProcess, tmp_path: Path, token: str
) -> None:
    with member(master.port, "one", tmp_path) as one:
        flood(one, "acme", 1)
        set_quota(master, "acme", 8 * MiB)
        set_quota(master, "gone", 8 * MiB)
        assert ask(master, "DELETE", "gone")[0] == 200
        wait_for("it is heard", lambda: limit_of(one, "acme") == 8 * MiB)
        master.kill()
        assert limit_of(one, "acme") == 8 * MiB, "a node keeps them without a master"
        again = MasterProcess(tmp_path / "again.log", token, port=master.port)
        try:

            def knows() -> bool:
                told_now = ask(again, "GET")[1]["data"]
                return [(d["tenant_id"], d["requested_quota_bytes"]) for d in told_now] == [
                    ("acme", 8 * MiB)
                ]

            wait_for("the new master knows", knows)
            set_quota(again, "acme", 4 * MiB)
            wait_for("and can change it", lambda: limit_of(one, "acme") == 4 * MiB)
        finally:
            again.kill()


def test_changes_need_the_token_and_sense(master: MasterProcess, tmp_path: Path) -> None:
    body = {"requested_quota_bytes": MiB}
    assert ask(master, "PUT", "acme", body, token="")[0] == 401
    assert ask(master, "PUT", "acme", body, token="open")[0] == 401
    assert ask(master, "DELETE", "acme", token="")[0] == 401
    assert ask(master, "GET", token="") == (200, {"success": True, "data": []})
    for tenant, given in (
        ("", body),
        ("a%0Ab", body),
        ("a" * 257, body),
        ("acme", {}),
        ("acme", {"requested_quota_bytes": 0}),
        ("acme", {"requested_quota_bytes": "1GB"}),
        ("acme", {"requested_quota_bytes": True}),
        ("acme", {"requested_quota_bytes": 1 << 63}),
        ("acme", "x" * 5000),
    ):
        status, answer = ask(master, "PUT", tenant, given)
        assert (status, answer["success"], answer["error_code"]) == (400, False, -600), tenant
        assert answer["error_message"]
    assert ask(master, "GET", "nobody")[0] == 404
    assert ask(master, "DELETE", "nobody")[0] == 404
    locked = MasterProcess(tmp_path / "locked.log")
    try:
        status, answer = ask(locked, "PUT", "acme", body)
        assert status == 401
        assert "token_file" in answer["error_message"]
    finally:
        locked.kill()
