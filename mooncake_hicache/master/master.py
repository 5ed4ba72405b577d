"""The master as a process: the directory up, leadership taken, HTTP beside it, until a signal.

It keeps nothing: a new one asks the nodes what they have, and what is not known meanwhile is a
miss. Stopping it in good order lets a standby lead at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from mooncake_hicache.config import MasterOptions, TransferOptions, environment_name
from mooncake_hicache.master.ask import directory_client
from mooncake_hicache.master.directory import start_directory
from mooncake_hicache.master.election import Election, epoch_by_clock
from mooncake_hicache.master.http import serve
from mooncake_hicache.master.quotas import ClusterQuotas
from mooncake_hicache.metadata.names import is_loopback
from mooncake_hicache.metadata.server import listen
from mooncake_hicache.metadata.token import read_token
from mooncake_hicache.secret import resolve_secret
from mooncake_hicache.transfer_core import host_port, public_host

__all__ = ["Master", "run_master"]

_log = logging.getLogger("mooncake_hicache.master")

ASK_TIMEOUT_MS = 5000
NOTICES_INTERVAL_S = 1.0


class Master:
    """A directory with whatever decides when it leads. Any thread may call.

    Raises:
        InvalidArgumentError, IoError: The options cannot be met here; the message says which.
    """

    def __init__(self, options: MasterOptions) -> None:
        transfer = TransferOptions(config=options.config)
        self._config = options.config
        self._known_notices = 0
        self._directory = start_directory(
            host=options.host,
            port=options.port,
            secret=resolve_secret(transfer.secret),
            tls=(transfer.tls_certificate, transfer.tls_key, transfer.tls_authority),
            pages_max=options.pages_max,
            is_elected=bool(options.etcd),
        )
        host = public_host(options.host, options.public_host)
        self.address = host_port(host, self._directory.port)
        """What nodes are given."""
        self._election: Election | None = None
        if options.etcd:
            self._election = Election(
                options.etcd,
                options.cluster,
                self.address,
                options.lease_ttl_s,
                lambda: self._directory.newest_epoch_heard,
                self._directory.lead,
            )
        else:
            # Later than those of an earlier life; the directory goes above what it hears.
            self._directory.lead(epoch_by_clock())

    def stats(self) -> dict[str, int]:
        """Return what the directory counts."""
        return dict(self._directory.stats())

    def members(self) -> list[dict[str, Any]]:
        """Return the nodes."""
        return list(self._directory.members())

    def epoch(self) -> int:
        """Return the epoch it leads with; 0: it does not."""
        return int(self._directory.epoch)

    def leader(self) -> str:
        """Return the leader's address; empty: not known."""
        if self.epoch():
            return self.address
        return self._election.leader if self._election else ""

    def log_notices(self) -> None:
        """Log what the directory has noticed since the last time, such as who was refused."""
        self._known_notices, notices = self._directory.notices_since(self._known_notices)
        for notice in notices:
            _log.warning("%s", notice)

    def drain(self, node: str, *, is_on: bool) -> None:
        """Have a node give its pages away, or end that.

        Raises:
            NotFoundError: No node is called so.
            UnavailableError: This master does not lead.
        """
        client = directory_client(self.address, self._config)
        try:
            client.drain(node, is_on, timeout_ms=ASK_TIMEOUT_MS)
        finally:
            client.stop()

    def quotas(self) -> ClusterQuotas:
        """Return the tenants' quotas, and what they use.

        Raises:
            UnavailableError: This master does not lead.
        """
        client = directory_client(self.address, self._config)
        try:
            return ClusterQuotas(*client.quotas(ASK_TIMEOUT_MS))
        finally:
            client.stop()

    def set_quota(self, tenant: str, size_bytes: int) -> None:
        """Say what a tenant may use of all nodes' memory; 0: it has no quota any more.

        Raises:
            InvalidArgumentError: What should have a quota is no name.
            NoSpaceError: Too many tenants have had quotas.
            UnavailableError: This master does not lead.
        """
        client = directory_client(self.address, self._config)
        try:
            client.set_quota(tenant, size_bytes, timeout_ms=ASK_TIMEOUT_MS)
        finally:
            client.stop()

    def stop(self) -> None:
        """Lead no longer and close every connection. May be called again."""
        if self._election is not None:
            self._election.stop()
            self._election = None
        self._directory.stop()


def run_master(options: MasterOptions, say: Callable[[str], None]) -> int:
    """Run a master until SIGTERM or SIGINT; for the main thread. Returns the exit status.

    Args:
        options: Its options.
        say: Called with each line that its user should see.

    Raises:
        InvalidArgumentError, IoError: The options cannot be met here.
    """
    token = read_token(options.token_file) if options.token_file else ""
    with contextlib.ExitStack() as stack:
        listener: socket.socket | None = None
        if options.http_port >= 0:
            listener = stack.enter_context(
                listen(options.http_host, options.http_port, "the master's HTTP side")
            )
        master = Master(options)
        stack.callback(master.stop)
        return asyncio.run(_run(options, master, listener, token, say))


async def _run(
    options: MasterOptions,
    master: Master,
    listener: socket.socket | None,
    token: str,
    say: Callable[[str], None],
) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        if listener is not None:
            await stack.enter_async_context(serve(master, listener, token))
        say(f"master answers at {master.address}")
        if listener is not None:
            host, port = listener.getsockname()[:2]
            say(f"shows the cluster at http://{host_port(host, port)}/")
        if options.etcd:
            say(f"etcd at {options.etcd} decides whether it leads cluster {options.cluster}")
        _warn(options, say)
        while not stopped.is_set():
            master.log_notices()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopped.wait(), NOTICES_INTERVAL_S)
    say("master stopped")
    return 0


def _warn(options: MasterOptions, say: Callable[[str], None]) -> None:
    if is_loopback(options.host):
        return
    secret = TransferOptions(config=options.config).secret.strip().lower()
    name = environment_name("transfer_secret")
    if secret == "none":
        say(f"{name} is none: whoever reaches {options.host} may read and change everything")
    elif not secret:
        say(
            f"nodes of other users and machines are refused: give all of them and this master the "
            f"same {name}"
        )
