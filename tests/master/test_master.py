"""One master, as its users see it: the command line, HTTP, the drop-in's program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mooncake_hicache.errors import Error
from mooncake_hicache.master.metrics import MASTER_METRICS, PREFIX
from tests.master.masters import MasterProcess, client_of
from tests.metadata.servers import free_port


@pytest.fixture
def master(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("sesame\n")
    started = MasterProcess(tmp_path / "log", f"--token-file={token}")
    yield started
    started.kill()


def test_it_leads_at_once_and_ends_in_good_order(master: MasterProcess) -> None:
    assert client_of(master).members(5000) == []
    assert master.epoch() > 0
    assert master.stop() == 0
    assert "master stopped" in master.log


def test_after_a_restart_it_leads_with_a_later_epoch(master: MasterProcess, tmp_path: Path) -> None:
    client = client_of(master)
    client.members(5000)
    before = client.epoch
    master.kill()
    again = MasterProcess(tmp_path / "log2", port=master.port)
    try:
        assert client.members(20_000) == []
        assert client.epoch > before
    finally:
        again.kill()


def test_what_dashboards_and_engines_ask_is_answered(master: MasterProcess) -> None:
    status, health = master.get("/health")
    assert status == 200
    assert '"service_ready": true' in health
    assert master.get("/role") == (200, "leader")
    assert master.get("/leader") == (200, f"127.0.0.1:{master.port}")
    assert master.get("/get_all_segments")[0] == 200
    assert master.get("/get_segments_detail") == (200, "[]")
    assert master.get("/query_segment?segment=nobody")[0] == 404
    status, why = master.get("/get_all_keys")
    assert status == 501
    assert "hashes" in why
    status, page = master.get("/")
    assert status == 200
    assert not re.search(r'(src|href)="?(https?:)?//', page)
    told = {f.name for f in text_string_to_metric_families(master.get("/metrics")[1])}
    assert {PREFIX + metric.stat for metric in MASTER_METRICS} <= told
    assert "master_key_count" in told


def test_what_changes_something_needs_the_token(master: MasterProcess) -> None:
    path = "/api/drain?node=nobody"
    assert master.get(path, "POST")[0] == 401
    assert master.get(path, "POST", Authorization="Bearer open")[0] == 401
    assert master.get(path, "GET", Authorization="Bearer sesame")[0] == 405
    status, why = master.get(path, "POST", Authorization="Bearer sesame")
    assert (status, bool(why)) == (409, True)


def test_without_a_token_nothing_can_be_changed(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path / "log")
    try:
        status, why = master.get("/api/drain?node=x", "POST", Authorization="Bearer ")
        assert status == 401
        assert "token_file" in why
    finally:
        master.kill()


def test_a_stranger_learns_nothing(master: MasterProcess) -> None:
    with pytest.raises(Error):
        client_of(master, secret="another").members(500)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port=70000"], "port"),
        (["--lease-ttl-s=1"], "lease_ttl_s"),
        (["--cluster=a/b"], "cluster"),
        (["--token-file=/nowhere/token"], "/nowhere/token"),
        (["--host=192.0.2.77", "--http-port=-1"], "192.0.2.77"),
        (["--etcd=:::"], "etcd"),
    ],
)
def test_wrong_options_are_named(flags: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mooncake_hicache", "master", "--port=0", "--http-port=0", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(master: MasterProcess) -> None:
    command = [sys.executable, "-m", "mooncake_hicache", "master", "--http-port=-1"]
    done = subprocess.run(
        [*command, f"--port={master.port}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert str(master.port) in done.stderr


def test_the_originals_program_starts_with_its_flags(tmp_path: Path) -> None:
    port, names = free_port(), free_port()
    master = MasterProcess(
        tmp_path / "log",
        *["-rpc_address=127.0.0.1", "--rpc_port", str(port), "--metrics_port=0"],
        *["--enable_http_metadata_server=true", "--http_metadata_server_host=127.0.0.1"],
        *[f"--http_metadata_server_port={names}", "--eviction_ratio=0.2", "--logtostderr"],
        module="mooncake_hicache.compat.master",
    )
    try:
        assert master.port == port
        assert client_of(master).members(5000) == []
        assert f"127.0.0.1:{names}/metadata" in master.log
        assert "--eviction_ratio is without effect" in master.log
        assert "logtostderr" not in master.log
    finally:
        master.kill()


def test_the_originals_program_names_what_it_does_not_know() -> None:
    program = [sys.executable, "-m", "mooncake_hicache.compat.master"]
    for flag, said in (("--rpc_prot=1", "rpc_prot"), ("--enable_ha=true", "etcd_endpoints")):
        done = subprocess.run(
            [*program, flag], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert said in done.stderr
