"""One master for the tests of a file, a store that uses it, and the REST service over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.store.rest_servers import RestProcess
from tests.compat.store.stores import machine, opened, running_master


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with machine() as folder:
        yield folder


@pytest.fixture(scope="module")
def master(folder: Path) -> Iterator[str]:
    with running_master(folder) as address:
        yield address


@pytest.fixture(scope="module")
def store(master: str) -> Iterator[MooncakeDistributedStore]:
    with opened(master) as store:
        yield store


@pytest.fixture(scope="module")
def rest(folder: Path, master: str) -> Iterator[RestProcess]:
    with RestProcess(folder, master) as rest:
        rest.wait_until_it_answers()
        yield rest
