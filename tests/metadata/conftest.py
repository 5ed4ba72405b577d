"""Servers that end with their test, and no settings of the shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_hicache.metadata.http import TOKEN_ENVIRONMENT
from tests.metadata.servers import Etcd, OldServer, OurServer


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENVIRONMENT, raising=False)
    # Whoever honours it would not reach servers on loopback.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture
def http_server(tmp_path: Path) -> Iterator[OurServer]:
    server = OurServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=["http_server", "etcd"])
def server(request: pytest.FixtureRequest) -> OurServer | Etcd:
    """Each kind of server that knows times to live."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, (OurServer, Etcd))
    return found


@pytest.fixture
def old_server() -> Iterator[OldServer]:
    server = OldServer()
    yield server
    server.stop()
