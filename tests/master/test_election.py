"""Several masters and a real etcd: one leads, and never two."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.master.masters import MasterProcess, client_of
from tests.metadata.servers import Etcd
from tests.processes import freeze, wait_for

TTL_S = 2


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def masters(etcd: Etcd, tmp_path: Path) -> Iterator[list[MasterProcess]]:
    flags = [f"--etcd=127.0.0.1:{etcd.port}", f"--lease-ttl-s={TTL_S}"]
    started: list[MasterProcess] = []
    try:
        for number in range(2):
            started.append(MasterProcess(tmp_path / f"master{number}", *flags))
            if number == 0:
                wait_for("the first one leads", lambda: started[0].epoch() > 0)
        yield started
    finally:
        for one in started:
            one.kill()


def test_the_first_leads_and_the_other_stands_by_and_knows_it(masters: list[MasterProcess]) -> None:
    first, second = masters
    wait_for("it knows", lambda: second.cluster()["leader"] == f"127.0.0.1:{first.port}")
    assert (first.epoch() > 0, second.epoch()) == (True, 0)
    assert second.get("/role") == (200, "standby")
    client = client_of(second, first)
    assert client.members(10_000) == []
    assert client.epoch == first.epoch()


def test_when_the_leader_is_killed_the_other_leads_with_a_later_epoch(
    masters: list[MasterProcess],
) -> None:
    first, second = masters
    before = first.epoch()
    client = client_of(first, second)
    client.members(10_000)
    first.kill()
    wait_for("the second leads", lambda: second.epoch() > before, 10 * TTL_S)
    assert client.members(10_000) == []
    assert client.epoch == second.epoch()


def test_when_the_leader_ends_in_good_order_the_other_leads(masters: list[MasterProcess]) -> None:
    first, second = masters
    before = first.epoch()
    assert first.stop() == 0
    wait_for("the second leads", lambda: second.epoch() > before, 10 * TTL_S)


def test_a_leader_that_was_stopped_leads_no_longer_when_it_goes_on(
    masters: list[MasterProcess],
) -> None:
    first, second = masters
    before = first.epoch()
    freeze(first.process.pid)
    wait_for("the second leads", lambda: second.epoch() > before, 10 * TTL_S)
    os.kill(first.process.pid, signal.SIGCONT)
    wait_for("the first gave up", lambda: first.epoch() == 0)
    assert "leads no longer" in first.log
    assert second.epoch() > before


def test_without_etcd_nobody_leads_and_when_it_is_back_one_does(
    etcd: Etcd, masters: list[MasterProcess]
) -> None:
    first, second = masters
    before = first.epoch()
    etcd.stop()
    wait_for("nobody leads", lambda: first.epoch() == 0 == second.epoch(), 10 * TTL_S)
    etcd.start()
    wait_for("one leads", lambda: max(first.epoch(), second.epoch()) > before)
    assert min(first.epoch(), second.epoch()) == 0


def test_an_etcd_that_has_forgotten_everything_gets_a_later_epoch_from_those_who_remember(
    etcd: Etcd, masters: list[MasterProcess]
) -> None:
    first, second = masters
    client = client_of(first, second)
    client.members(10_000)
    before = client.epoch
    etcd.lose_everything()
    etcd.start()

    def later_one_answers() -> bool:
        # The former leader answers until it learns that its lease is forgotten too.
        return client.members(30_000) == [] and client.epoch > before

    wait_for("one leads with a later epoch", later_one_answers)
