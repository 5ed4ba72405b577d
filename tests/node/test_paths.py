"""The private folder, its checks, and sockets of other users."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mooncake_hicache import Store
from mooncake_hicache.config import NodeOptions
from mooncake_hicache.errors import Error, InvalidArgumentError, IoError
from mooncake_hicache.node.paths import (
    SOCKET_PATH_SIZE_MAX,
    check_socket_path,
    default_runtime_dir,
    node_paths,
)
from tests.node.conftest import NodeFolder
from tests.processes import wait_for

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOONCAKE_HICACHE_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_default_folder_is_the_users_own(
    bare: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = Path(f"/tmp/mooncake-hicache-{os.getuid()}")
    assert default_runtime_dir() == ours
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_runtime_dir() == tmp_path / "mooncake-hicache"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    assert default_runtime_dir() == ours


@as_root
def test_another_users_session_folder_is_not_taken(
    bare: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_runtime_dir() == Path(f"/tmp/mooncake-hicache-{os.getuid()}")


def test_a_folder_is_made_private(tmp_path: Path) -> None:
    paths = node_paths(NodeOptions(runtime_dir=str(tmp_path / "a/b"), socket="@x"), create=True)
    assert paths.folder.stat().st_mode & 0o777 == 0o700
    paths.folder.chmod(0o755)
    node_paths(NodeOptions(runtime_dir=str(paths.folder), socket="@x"), create=True)
    assert paths.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_refused(folder: NodeFolder) -> None:
    folder.path.chmod(0o777)
    with pytest.raises(InvalidArgumentError, match=re.escape(f"chmod 700 {folder.path}")):
        Store.open()


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(InvalidArgumentError, match="not a plain folder"):
        node_paths(NodeOptions(runtime_dir=str(link), socket="@x"), create=True)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Error, match=str(file)):
        node_paths(NodeOptions(runtime_dir=str(file), socket="@x"), create=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(IoError, match="/proc/nowhere.*MOONCAKE_HICACHE_RUNTIME_DIR"):
        node_paths(NodeOptions(runtime_dir="/proc/nowhere"), create=True)


@as_root
def test_another_users_folder_is_refused(folder: NodeFolder) -> None:
    os.chown(folder.path, NOBODY, NOBODY)
    try:
        with pytest.raises(InvalidArgumentError, match=f"belongs to user {NOBODY}"):
            Store.open()
    finally:
        os.chown(folder.path, 0, 0)


def test_the_longest_socket_path_works_and_one_byte_more_is_named(folder: NodeFolder) -> None:
    room = SOCKET_PATH_SIZE_MAX - len(f"{folder.path}//node.sock")
    check_socket_path("/" + "x" * (SOCKET_PATH_SIZE_MAX - 1))
    with pytest.raises(InvalidArgumentError, match=r"108 bytes.*MOONCAKE_HICACHE_RUNTIME_DIR"):
        check_socket_path("/" + "x" * SOCKET_PATH_SIZE_MAX)
    with pytest.raises(InvalidArgumentError, match="108 bytes"):
        Store.open(runtime_dir=str(folder.path / ("y" * (room + 1))))
    longest = folder.path / ("x" * room)
    with Store.open(runtime_dir=str(longest)) as store:
        assert len(os.fsencode(str(longest / "node.sock"))) == SOCKET_PATH_SIZE_MAX
        assert store.namespace("x").put("page", b"x")
    NodeFolder(longest).end()


def test_a_file_in_place_of_the_socket_is_named(folder: NodeFolder) -> None:
    socket = Path(folder.paths.socket)
    socket.write_text("not a socket")
    with pytest.raises(Error, match=f"{socket}.*remove it"):
        Store.open()
    assert socket.read_text() == "not a socket"


COMMAND_OF_ANOTHER_USER = """
import os, sys
import mooncake_hicache.cli, rich.table, rich.console  # While the files can be read.
os.setgid(65534); os.setuid(65534)
mooncake_hicache.cli.main()
"""


@as_root
@pytest.mark.parametrize("command", ["status", "stop", "doctor"])
def test_a_folder_that_cannot_be_seen_is_not_taken_for_an_empty_one(
    folder: NodeFolder, command: str
) -> None:
    """A node may well run there."""
    with Store.open():
        done = subprocess.run(
            [sys.executable, "-c", COMMAND_OF_ANOTHER_USER, command],
            capture_output=True,
            text=True,
            check=False,
        )
        inside = {"MOONCAKE_HICACHE_RUNTIME_DIR": str(folder.path / "inside")}
        hidden = subprocess.run(
            [sys.executable, "-c", COMMAND_OF_ANOTHER_USER, command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **inside},
        )
    for one, told in ((done, "belongs to user 0"), (hidden, "Permission denied")):
        said = one.stdout + one.stderr
        assert one.returncode == 1, said
        assert told in said
        assert "MOONCAKE_HICACHE_RUNTIME_DIR" in said
        assert "not running" not in said
        assert "no node runs" not in said
        assert "Traceback" not in said


@as_root
def test_root_is_told_of_a_folder_of_another_user(folder: NodeFolder) -> None:
    os.chown(folder.path, NOBODY, NOBODY)
    for command in ("status", "stop"):
        done = folder.run(command)
        assert done.returncode == 1
        assert f"belongs to user {NOBODY}" in done.stderr
    os.chown(folder.path, 0, 0)


NODE_OF_ANOTHER_USER = """
import os, sys
import concurrent.futures.thread  # What asyncio imports late, and
import mooncake_hicache.node.daemon  # the rest, while the interpreter's files can be read.
os.setgid(65534); os.setuid(65534)
from mooncake_hicache.node.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@as_root
def test_another_users_node_is_refused_by_name(folder: NodeFolder) -> None:
    place = folder.path / "theirs"
    place.mkdir(mode=0o700)
    folder.path.chmod(0o755)
    os.chown(place, NOBODY, NOBODY)
    options = {"runtime_dir": str(place), "pool_size": "16MiB", "http_port": -1}
    node = subprocess.Popen(
        [sys.executable, "-c", NODE_OF_ANOTHER_USER, json.dumps(options)],
    )
    try:
        socket = place / "node.sock"
        wait_for("its socket is there", lambda: socket.exists() or node.poll() is not None)
        assert node.poll() is None
        with pytest.raises(Error) as caught:
            Store.open(socket=str(socket))
        assert str(socket) in str(caught.value)
        assert str(NOBODY) in str(caught.value)
    finally:
        node.kill()
        node.wait()
