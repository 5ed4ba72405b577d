"""The master's page in a real browser, beside a node whose pages are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_hicache import Store
from tests.master.masters import SECRET, MasterProcess
from tests.processes import wait_for

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Of the page's own time: several of its looks, whose differences are rates.
    "--virtual-time-budget=9000",
]
PAGE_SIZE = 100_000
NAME = "<b>node</b> & co"

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@pytest.fixture
def master(tmp_path: Path) -> Iterator[MasterProcess]:
    master = MasterProcess(tmp_path / "master.log")
    yield master
    master.kill()


@pytest.fixture
def store(
    master: MasterProcess, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", SECRET)
    with Store.open(
        master=f"127.0.0.1:{master.port}", node_name=NAME, pool_size="64MiB", ssd="off"
    ) as store:
        pages = store.namespace("x")
        for number in range(4):
            assert pages.put(f"page-{number}", os.urandom(PAGE_SIZE))
            assert pages.get(f"page-{number}") is not None
        assert pages.exists_batch(["page-0", "page-1", "page-2", "missing"]).sum() == 3
        yield store


def reported(master: MasterProcess, key: str) -> int:
    return sum(int(one[key]) for one in master.cluster()["members"])


def page_text(url: str, profile: Path) -> str:
    """Return what the page consists of once it has looked several times."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def card(text: str, name: str) -> str:
    found = re.search(rf'<div class="card" id="{name}"><b>([^<]*)</b>', text)
    assert found, text
    return found.group(1)


def test_nodes_tell_the_master_what_they_have_done(master: MasterProcess, store: Store) -> None:
    wait_for("all is told", lambda: reported(master, "read_bytes") == 4 * PAGE_SIZE)
    assert reported(master, "missed_pages") >= 1
    assert reported(master, "found_pages") >= 3
    assert reported(master, "get_count") == 4
    assert reported(master, "get_ns") > 0
    text = master.get("/metrics")[1]
    assert re.search(r"mooncake_hicache_master_node_read_bytes_total\{[^}]*\} 400000\.0", text)


@needs_browser
def test_the_page_shows_the_cluster(master: MasterProcess, store: Store, tmp_path: Path) -> None:
    wait_for("all is told", lambda: reported(master, "read_bytes") == 4 * PAGE_SIZE)
    wait_for("its pages are known", lambda: reported(master, "pages") == 4)
    text = page_text(master.url + "/", tmp_path / "profile")
    assert card(text, "count") == "1"
    assert card(text, "pages") == "4"
    assert card(text, "total") == "391 KiB"
    assert "&lt;b&gt;node&lt;/b&gt; &amp; co" in text, "a name is text, never markup"
    assert '<td class="live">live</td>' in text
    assert "64 MiB" in text
    assert '<p id="trouble" role="alert"></p>' in text


@needs_browser
def test_the_page_says_that_the_master_is_gone(master: MasterProcess, tmp_path: Path) -> None:
    # The page as it was served, opened where nobody answers its questions.
    file = tmp_path / "page.html"
    file.write_text(master.get("/")[1], encoding="utf-8")
    text = page_text(file.as_uri(), tmp_path / "profile")
    assert "The master does not answer" in text
