"""The doctor's checks of the cluster: its master, this node's place in it, the others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from mooncake_hicache.cli.checks_network import network_checks
from mooncake_hicache.cli.finding import Check
from mooncake_hicache.config import NodeOptions, StoreOptions, TransferOptions, environment_name
from mooncake_hicache.errors import InvalidArgumentError, TransientError, UnsupportedError
from mooncake_hicache.master.ask import directory_client, parse_masters
from mooncake_hicache.metadata.names import is_loopback, parse_address
from mooncake_hicache.node.cluster import listening_host, node_name
from mooncake_hicache.node.paths import node_paths
from mooncake_hicache.secret import SECRET_FILE

__all__ = ["cluster_checks"]

ANSWER_TIMEOUT_MS = 3000
CONNECT_TIMEOUT_S = 1.0
PEERS_MAX = 8
"""Others that are tried; so that a cluster behind a wall does not take minutes."""


def cluster_checks(options: StoreOptions) -> Iterator[Check]:
    """Yield what is found of the cluster, if this node belongs to one. Blocks for up to 12 s.

    Raises:
        InvalidArgumentError, IoError: A master is no address, or the secret cannot be read.
    """
    if not options.master:
        yield Check("cluster", "note", "the option master is not set: this node is alone")
        return
    masters = parse_masters(options.master)
    is_far = not all(is_loopback(one.host) for one in masters)
    host = listening_host(options)
    if is_far and is_loopback(host):
        yield Check(
            "cluster",
            "error",
            f"the master is at {options.master}, and other machines cannot reach this node: "
            f"it listens at {host}",
            f"set node_host ({environment_name('node_host')}) to this machine's address, or to "
            "0.0.0.0",
        )
    yield from network_checks(options, host)
    secret = _secret(TransferOptions(config=options.config).secret, is_far=is_far)
    yield secret
    if secret.verdict == "error":
        return
    client = directory_client(options.master, options.config)
    try:
        members = client.members(ANSWER_TIMEOUT_MS)
    except UnsupportedError as error:
        yield Check(
            "cluster",
            "error",
            str(error),
            "the same release of mooncake-hicache on this machine and on the master's",
        )
        return
    except TransientError as error:
        yield Check(
            "cluster",
            "error",
            f"no master of {options.master} leads: {error}",
            "`mooncake-hicache master` there, with the same transfer_secret "
            f"({environment_name('transfer_secret')}) as here",
        )
        return
    finally:
        client.stop()
    yield from _members(node_name(options), members)


def _secret(option: str, *, is_far: bool) -> Check:
    name = environment_name("transfer_secret")
    remedy = f"give all machines of the cluster the same {name}: a text, or a file of mode 0600"
    if option.strip().lower() == "none":
        finding = "transfer_secret is none: whoever reaches this node may read every page"
        return Check("cluster secret", "warning", finding, remedy)
    if option.strip():
        return Check("cluster secret", "ok", "transfer_secret is set")
    if is_far:
        finding = (
            "transfer_secret is not set, so this node and a master elsewhere refuse each other"
        )
        return Check("cluster secret", "error", finding, remedy)
    path = node_paths(NodeOptions()).folder / SECRET_FILE
    if not path.exists():
        finding = f"{path} is missing: no master of this user has run on this machine"
        return Check("cluster secret", "error", finding, "`mooncake-hicache master`")
    return Check("cluster secret", "ok", f"{path}, for processes of this user on this machine")


def _members(own_name: str, members: list[dict[str, Any]]) -> Iterator[Check]:
    there = {one["name"]: one for one in members if one["state"] != "gone"}
    own = there.pop(own_name, None)
    finding = f"a master leads {len(there) + (own is not None)} nodes"
    if own is None:
        yield Check("cluster", "note", f"{finding}; this one, {own_name}, is not among them")
    elif own["state"] == "suspect":
        remedy = "look whether it runs, and into its log: `mooncake-hicache status`"
        yield Check("cluster", "warning", f"{finding}; it has lost this one, {own_name}", remedy)
    else:
        yield Check("cluster", "ok", f"{finding}; this one, {own_name}, is {own['state']}")
    failures = [
        failure
        for one in list(there.values())[:PEERS_MAX]
        if one["state"] != "suspect" and (failure := _why_not_reached(one))
    ]
    tried = min(len(there), PEERS_MAX)
    if failures:
        yield Check(
            "other nodes",
            "error",
            "; ".join(failures),
            "let node_ports through the firewalls; on a node that tells a loopback address set "
            "node_host",
        )
    elif tried:
        yield Check("other nodes", "ok", f"{tried} of {len(there)} were tried and can be reached")


def _why_not_reached(member: dict[str, Any]) -> str:
    """Return why nothing listens at a node's address as seen from here; empty if something does."""
    text = member["addresses"][0] if member["addresses"] else ""
    try:
        address = parse_address(text, what="node", port=0)
        with socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S):
            return ""
    except (InvalidArgumentError, OSError) as error:
        return f"{member['name']} at {text or 'no address'}: {error}"
