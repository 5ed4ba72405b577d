"""The program of the REST service: its settings, how it begins, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
from pathlib import Path

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.store.rest_servers import SUCCESS, RestProcess, is_refused
from tests.compat.store.stores import machine, opened, running_master
from tests.master.masters import MasterProcess
from tests.metadata.servers import free_port, silent_port
from tests.processes import wait_for

# ---- settings


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


# ---- begin and end


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
