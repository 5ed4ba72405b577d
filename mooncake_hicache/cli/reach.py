"""Looking at the node without ever starting one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

from mooncake_hicache import _core
from mooncake_hicache.config import StoreOptions
from mooncake_hicache.errors import TransientError
from mooncake_hicache.node.paths import NodePaths, check_visible, node_paths
from mooncake_hicache.node.state import NodeState, is_locked, read_state

__all__ = ["NodeView", "look"]


@dataclass(frozen=True)
class NodeView:
    """What can be seen of a node from outside."""

    paths: NodePaths
    is_held: bool
    """A process holds the node lock, so a node lives or is just starting or ending."""
    state: NodeState | None
    stats: dict[str, Any] | None
    """Its counts, None if it does not answer."""
    failure: str
    """Why it does not answer; empty if it does."""
    answer_ms: float
    """Milliseconds from connecting to the answer."""
    client: _core.Client | None
    """The connection, if it was asked for and the node answers; to be closed by the caller."""


def look(options: StoreOptions, *, keep_client: bool = False) -> NodeView:
    """Connect to the node, ask for its counts, and read its state file.

    Blocks for at most `node_unresponsive_ms` plus `call_timeout_ms`.

    Raises:
        InvalidArgumentError: The socket's path cannot be one, or it or the folder is somebody
            else's.
        IoError: The folder or the socket cannot be looked at, so whether a node runs is not known.
    """
    paths = node_paths(options)
    check_visible(paths)
    client = _core.Client(
        copy_threads=1,
        put_copy_threads=1,
        call_timeout_ms=options.call_timeout_ms,
        verify=True,
        name="mooncake-hicache",
    )
    began = time.monotonic()
    stats: dict[str, Any] | None = None
    failure = ""
    try:
        client.connect(paths.socket, options.node_unresponsive_ms)
        stats = cast(dict[str, Any], client.node_stats())
    except TransientError as error:
        failure = str(error)
    answer_ms = (time.monotonic() - began) * 1000
    if not keep_client or stats is None:
        client.close()
    return NodeView(
        paths=paths,
        is_held=is_locked(paths.node_lock),
        state=read_state(paths.state),
        stats=stats,
        failure=failure,
        answer_ms=answer_ms,
        client=client if keep_client and stats is not None else None,
    )
