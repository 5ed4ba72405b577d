"""The real server: pages come back from every tier, and every output is the one without a cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("sglang")

from mooncake_hicache.cli.reach import look
from mooncake_hicache.config import StoreOptions
from tests.serving.model import tiny_model
from tests.serving.server import HICACHE_ARGS, LINKER_ARGS, Server

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

THRESHOLD = ["--hicache-storage-backend-extra-config", json.dumps({"prefetch_threshold": 16})]
PROMPT = [(7 * i) % 250 for i in range(400)]
# All full pages but for the last token, which is always computed: 24 pages of 16 tokens.
CACHED = 384
BACKEND = "/hicache/storage-backend"


def agree(first, other):
    """Equal tokens, and equal log-probabilities up to the order of additions."""
    assert other.tokens == first.tokens
    assert max(abs(a - b) for a, b in zip(other.logprobs, first.logprobs, strict=True)) < 1e-3


def cached(result):
    return {tier: result.details.get(tier, 0) for tier in ("device", "host", "storage")}


def push_out(server):
    """Fill the device's pool with other prompts."""
    for k in range(6):
        server.generate([(11 * i + 31 * k + 1) % 250 for i in range(400)], 4)


def walk_through_the_tiers(server):
    """Cold, device, host and storage, in turn; returns the first answer."""
    cold = server.generate(PROMPT)
    assert cold.cached_tokens == 0
    again = server.generate(PROMPT)
    agree(cold, again)
    assert cached(again)["device"] == CACHED
    push_out(server)
    from_host = server.generate(PROMPT)
    agree(cold, from_host)
    assert cached(from_host) == {"device": 0, "host": CACHED, "storage": 0}
    server.flush()
    from_storage = server.generate(PROMPT)
    agree(cold, from_storage)
    assert cached(from_storage) == {"device": 0, "host": 0, "storage": CACHED}
    assert from_storage.details["storage_backend"] == "MooncakeHiCacheStore"
    return cold


def wait_until_ranks_have_a_node(runtime_dir, ranks=1):
    """Servers do not wait for the node that they start; on a busy machine the first pages are
    computed before it is there."""
    options = StoreOptions(runtime_dir=str(runtime_dir))
    deadline = time.monotonic() + 60
    while True:
        stats = look(options).stats
        if stats is not None and stats["clients"] > ranks:  # Who looks is one of them.
            return
        assert time.monotonic() < deadline, f"{ranks} ranks are not connected to a node"
        time.sleep(0.05)


@contextlib.contextmanager
def server_with_node(tag, args, runtime_dir, ranks=1):
    with Server(tag, args) as server:
        wait_until_ranks_have_a_node(runtime_dir, ranks)
        yield server


@pytest.fixture(scope="module")
def expected():
    """What a server without any hierarchical cache answers."""
    with Server("plain") as server:
        return server.generate(PROMPT)


def test_one_rank_restart_faults_and_endpoints(expected, runtime_dir):
    """One server for several goals, as each start takes half a minute."""
    args = [*HICACHE_ARGS, *THRESHOLD, "--enable-metrics"]
    with server_with_node("tp1", args, runtime_dir) as server:
        agree(expected, walk_through_the_tiers(server))
        assert "keeps KV pages of" in server.log
        assert "tensor allocator requires mooncake" not in server.log
        metrics = server.get("/metrics")
        assert 'storage_backend="mooncake"' in metrics
        assert "sglang:prefetch_bandwidth" in metrics
    args += ["--admin-api-key", "k"]
    with server_with_node("tp1-again", args, runtime_dir) as server:
        warm = server.generate(PROMPT)
        agree(expected, warm)
        assert cached(warm)["storage"] == CACHED
        assert_detach_and_attach(server, expected, runtime_dir)
        assert_clear_forgets(server, expected)
        assert_serving_survives_the_node(server, expected, runtime_dir)


def test_the_linker_serves_without_host_pools(expected, runtime_dir):
    with server_with_node("linker", LINKER_ARGS, runtime_dir) as server:
        cold = server.generate(PROMPT)
        agree(expected, cold)
        assert cold.cached_tokens == 0
        assert cached(server.generate(PROMPT))["device"] == CACHED
        server.flush()
        found = server.generate(PROMPT)
        agree(expected, found)
        # SGLang counts what its linker loads as the host's.
        assert cached(found) == {"device": 0, "host": CACHED, "storage": 0}
        kill_node(runtime_dir)
        server.flush()
        agree(expected, server.generate(PROMPT))
        wait_until_ranks_have_a_node(runtime_dir)
        push_out(server)
        server.flush()
        agree(expected, server.generate(PROMPT))


def admin(server, method, path, body=None):
    """Ask what only an administrator may."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": "Bearer k"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


def flush(server):
    """Empty device and host, as soon as all pages are written."""
    deadline = time.monotonic() + 60
    while True:
        try:
            admin(server, "POST", "/flush_cache")
            return
        except urllib.error.HTTPError as error:
            assert error.code == 400
            assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_detach_and_attach(server, expected, runtime_dir):
    flush(server)
    admin(server, "DELETE", BACKEND)
    flush(server)
    without = server.generate(PROMPT)
    agree(expected, without)
    assert cached(without)["storage"] == 0
    extra = {"hicache_storage_backend_extra_config_json": THRESHOLD[1]}
    flush(server)
    admin(server, "PUT", BACKEND, {"hicache_storage_backend": "mooncake", **extra})
    wait_until_ranks_have_a_node(runtime_dir)
    # Pages computed while there was no storage are not written by themselves.
    flush(server)
    back = server.generate(PROMPT)
    agree(expected, back)
    assert cached(back)["storage"] == CACHED


def assert_clear_forgets(server, expected):
    admin(server, "POST", f"{BACKEND}/clear")
    flush(server)
    cold = server.generate(PROMPT)
    agree(expected, cold)
    assert cold.cached_tokens == 0


def kill_node(runtime_dir):
    state = json.loads((runtime_dir / "node.json").read_text())
    os.kill(int(state["pid"]), signal.SIGKILL)


def assert_serving_survives_the_node(server, expected, runtime_dir):
    flush(server)
    kill_node(runtime_dir)
    begun = time.monotonic()
    agree(expected, server.generate(PROMPT))
    assert time.monotonic() - begun < 20
    # The next node takes over without being asked.
    deadline = time.monotonic() + 60
    stored = {"storage": 0}
    while stored["storage"] != CACHED and time.monotonic() < deadline:
        flush(server)
        answer = server.generate(PROMPT)
        agree(expected, answer)
        stored = cached(answer)
    assert stored["storage"] == CACHED


def test_two_ranks(expected, runtime_dir):
    args = [*HICACHE_ARGS, *THRESHOLD, "--tp", "2"]
    with server_with_node("tp2", args, runtime_dir, ranks=2) as server:
        walk_through_the_tiers(server)
    with server_with_node("tp1-after-tp2", [*HICACHE_ARGS, *THRESHOLD], runtime_dir) as server:
        other = server.generate(PROMPT)
        agree(expected, other)
        assert other.cached_tokens == 0, "pages of two ranks must not be pages of one"


def test_behind_the_failure_injector(expected, runtime_dir):
    env = {
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.3",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.05",
    }
    with Server("injector", [*HICACHE_ARGS, *THRESHOLD], env) as server:
        for _ in range(6):
            agree(expected, server.generate(PROMPT))
            server.flush()


def test_wrong_option_leaves_a_server_without_a_cache(expected, runtime_dir):
    wrong = json.dumps({"prefetch_threshold": 16, "mooncake_hicache": {"pool_sise": "1GiB"}})
    args = [*HICACHE_ARGS, "--hicache-storage-backend-extra-config", wrong]
    with Server("wrong-option", args) as server:
        agree(expected, server.generate(PROMPT))
        server.flush()
        again = server.generate(PROMPT)
        agree(expected, again)
        assert again.cached_tokens == 0
        assert "unknown option pool_sise" in server.log
        assert "pool_size" in server.log


def test_switched_off_leaves_sglang_alone(runtime_dir):
    from tests.serving.server import ServerError

    with pytest.raises(ServerError, match="mooncake"):
        Server("off", [*HICACHE_ARGS], {"MOONCAKE_HICACHE_SGLANG": "off"})


def test_pages_of_other_weights_are_not_found_after_a_live_update(runtime_dir):
    with server_with_node("update", [*HICACHE_ARGS, *THRESHOLD], runtime_dir) as server:
        first = server.generate(PROMPT)
        server.flush()
        assert cached(server.generate(PROMPT))["storage"] == CACHED
        update = {"model_path": str(tiny_model()), "weight_version": "B", "flush_cache": True}
        assert server.post("/update_weights_from_disk", update)["success"]
        again = server.generate(PROMPT)
        assert cached(again) == {"device": 0, "host": 0, "storage": 0}
        # The files are the same, so is the answer; for storage the weights are others.
        agree(first, again)
        server.flush()
        assert cached(server.generate(PROMPT))["storage"] == CACHED
        assert "pages of other weights are not seen any more" in server.log
