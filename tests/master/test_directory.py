"""The directory as Python hosts and asks it."""

from __future__ import annotations

import socket
import time

import pytest

from mooncake_hicache import _core
from mooncake_hicache.errors import Error, InvalidArgumentError, TimeoutError_
from mooncake_hicache.master.directory import start_directory

SECRET = "of the cluster"
PAGES_MAX = 1000


@pytest.fixture
def directory():
    started = start_directory(host="127.0.0.1", secret=SECRET, pages_max=PAGES_MAX)
    yield started
    started.stop()


def client_of(*ports: int, secret: str = SECRET) -> _core.DirectoryClient:
    return _core.DirectoryClient(addresses=[("127.0.0.1", port) for port in ports], secret=secret)


def test_it_answers_whoever_knows_the_secret_once_it_leads(directory) -> None:
    client = client_of(directory.port)
    with pytest.raises(Error):
        client.members(200)
    directory.lead(7)
    assert client.members(5000) == []
    assert client.epoch == 7 == directory.epoch
    assert client.locate(b"n" * 32, b"k" * 64) == [[], []]
    assert client.clear(b"n" * 32) == 0
    assert directory.stats()["locate_keys"] == 2


def test_a_stranger_learns_nothing(directory) -> None:
    directory.lead(1)
    with pytest.raises(Error):
        client_of(directory.port, secret="another").members(500)
    assert directory.stats()["locate_requests"] == 0


def test_the_one_that_leads_is_found_among_several(directory) -> None:
    other = start_directory(host="127.0.0.1", secret=SECRET, pages_max=PAGES_MAX)
    try:
        other.lead(3)
        client = client_of(directory.port, other.port)
        assert client.members(5000) == []
        other.lead(0)
        directory.lead(4)
        client.members(10_000)
        assert client.epoch == 4
    finally:
        other.stop()


def test_nobody_there_is_said_with_host_port_and_cause() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(TimeoutError_, match=rf"127\.0\.0\.1:{port}.*refused"):
            client_of(port).members(1000)
        assert time.monotonic() - began < 5


def test_what_makes_no_sense_is_refused(directory) -> None:
    directory.lead(1)
    client = client_of(directory.port)
    with pytest.raises(InvalidArgumentError, match="replicas"):
        client.locate(b"n" * 32, b"k" * 32, replicas_max=0)
    with pytest.raises(Error, match="127.0.0.1"):
        start_directory(host="127.0.0.1", port=directory.port, secret=SECRET, pages_max=PAGES_MAX)
    with pytest.raises(Error):
        client.drain("nobody")
