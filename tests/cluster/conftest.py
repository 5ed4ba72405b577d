"""Two machines and a master between them; skipped where network namespaces cannot be made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Machines, why_not
from tests.cluster.nodes import Cluster


@pytest.fixture(scope="session")
def may_have_machines() -> None:
    why = why_not()
    if why:
        pytest.skip(why)


@pytest.fixture
def cluster(may_have_machines: None) -> Iterator[Cluster]:
    """Nodes on "a" and "b", both known to the master."""
    with (
        tempfile.TemporaryDirectory(prefix="hc-") as folder,
        Machines("a", "b", "master") as machines,
    ):
        started = Cluster(machines, Path(folder))
        for name in ("a", "b"):
            started.start_node(name)
        started.wait_for(a="live", b="live")
        yield started
