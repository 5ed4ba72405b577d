"""An etcd whose answers make no sense for a while: the election goes on."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mooncake_hicache.master.election import Election
from tests.processes import wait_for

KEPT_EPOCH = 2**61


class OddEtcd:
    """Grants everything; of the epoch's key it forgets to say when it was changed."""

    def __init__(self) -> None:
        self.is_odd = True
        self.odd_answers = 0
        etcd = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say({"etcdserver": "3.5.4", "etcdcluster": "3.5.0"})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._say(etcd.answer(self.path, asked))

            def _say(self, answer: dict[str, object]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.where = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, asked: dict[str, str]) -> dict[str, object]:
        if path.endswith("/lease/grant"):
            return {"ID": "7", "TTL": "5"}
        if path.endswith("/lease/keepalive"):
            return {"result": {"ID": "7", "TTL": "5"}}
        if path.endswith("/kv/txn"):
            return {"succeeded": True}
        key = base64.b64decode(asked.get("key", "")).decode()
        if not path.endswith("/kv/range") or not key.endswith("/epoch"):
            return {}
        kept = {"key": asked["key"], "value": base64.b64encode(str(KEPT_EPOCH).encode()).decode()}
        if self.is_odd:
            self.odd_answers += 1
        else:
            kept["mod_revision"] = "3"
        return {"kvs": [kept]}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def etcd() -> Iterator[OddEtcd]:
    server = OddEtcd()
    yield server
    server.stop()


def test_an_answer_that_makes_no_sense_ends_no_election(etcd: OddEtcd) -> None:
    epochs: list[int] = []
    election = Election(etcd.where, "odd", "127.0.0.1:1", 2, lambda: 0, epochs.append)
    try:
        wait_for("it asks again after it was told nonsense", lambda: etcd.odd_answers >= 2)
        assert epochs == []
        etcd.is_odd = False
        wait_for("it leads", lambda: epochs == [KEPT_EPOCH + 1])
    finally:
        election.stop()
