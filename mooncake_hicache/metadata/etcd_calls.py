"""Calls of an etcd that has several endpoints: the first that answers, within a time limit.

Over etcd's JSON gateway (etcd3gw), which every etcd of version 3.4 and later has at its client
port. A connection for each call: there is one every few seconds, and nothing is left of an etcd
that was restarted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

import requests
from etcd3gw import Etcd3Client
from etcd3gw.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    Etcd3Exception,
)

from mooncake_hicache.errors import InvalidArgumentError, TimeoutError_, UnavailableError
from mooncake_hicache.metadata.cause import cause_of
from mooncake_hicache.metadata.names import Address, parse_address
from mooncake_hicache.metadata.protocol import TIMEOUT_S

__all__ = ["EtcdCalls"]

PORT = 2379
ENDPOINTS_MAX = 16

T = TypeVar("T")


class EtcdCalls:
    """Runs operations at whichever endpoint answers. Any thread may call.

    Args:
        endpoints: `host:port[,host:port]`; 2379 is the port of those that name none.
        timeout_s: Seconds that one call may take, over all endpoints.

    Raises:
        InvalidArgumentError: An endpoint is none.
    """

    def __init__(self, endpoints: str, timeout_s: float = TIMEOUT_S) -> None:
        self._endpoints = _endpoints_of(endpoints)
        self.where = f"etcd {', '.join(map(str, self._endpoints))}"
        """What messages call it."""
        self._timeout_s = timeout_s

    @property
    def endpoints(self) -> list[Address]:
        """The endpoints; the one that answered last comes first."""
        return list(self._endpoints)

    def call(self, operation: Callable[[Etcd3Client], T], timeout_s: float | None = None) -> T:
        """Run an operation at the first endpoint that answers.

        In a thread of its own: looking up a host's name cannot be given a time limit.

        Args:
            operation: Called with a client of one endpoint; perhaps with several, one by one.
            timeout_s: Seconds, if fewer than those of all calls.

        Raises:
            UnavailableError, TimeoutError_: None answers; the message names each and its cause.
        """
        limit_s = min(self._timeout_s, timeout_s if timeout_s is not None else self._timeout_s)
        deadline = time.monotonic() + limit_s
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(self._at_some_endpoint(operation, deadline))
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits.
                result.set_exception(error)

        threading.Thread(target=run, name="hicache-etcd", daemon=True).start()
        try:
            return result.result(max(0.0, limit_s))
        except FutureTimeoutError:
            raise TimeoutError_(
                f"{self.where} did not answer within {limit_s:.3g} s: is it overloaded, or "
                "does a firewall drop what is sent there?"
            ) from None

    def _at_some_endpoint(self, operation: Callable[[Etcd3Client], T], deadline: float) -> T:
        failures = []
        for endpoint in list(self._endpoints):
            left_s = deadline - time.monotonic()
            share_s = min(left_s, max(0.5, self._timeout_s / len(self._endpoints)))
            if share_s <= 0:
                break
            session = requests.Session()
            session.trust_env = False  # A proxy of the environment is for the world outside.
            client = Etcd3Client(endpoint.host, endpoint.port, timeout=share_s, session=session)
            try:
                found = operation(client)
            except ConnectionTimeoutError:
                failures.append(f"{endpoint}: no answer within {share_s:.1f} s")
            except (ConnectionFailedError, requests.RequestException) as error:
                failures.append(f"{endpoint}: {cause_of(error)}")
            except Etcd3Exception as error:
                failures.append(f"{endpoint}: {(error.detail_text or str(error)).strip()[:200]}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                failures.append(
                    f"{endpoint}: it does not answer like etcd ({type(error).__name__})"
                )
            else:
                self._prefer(endpoint)
                return found
            finally:
                session.close()
        raise UnavailableError(
            f"cannot reach etcd: {'; '.join(failures)}; start it or correct its address"
        )

    def _prefer(self, endpoint: Address) -> None:
        if self._endpoints[0] != endpoint:
            others = [one for one in self._endpoints if one != endpoint]
            self._endpoints = [endpoint, *others]


def _endpoints_of(text: str) -> list[Address]:
    # A path or a slash at the end is what people copy along.
    found = [
        parse_address(one.strip(), what="etcd endpoint", port=PORT)
        for one in text.rstrip("/").split(",")
    ]
    if len(found) > ENDPOINTS_MAX:
        raise InvalidArgumentError(f"{len(found)} etcd endpoints: at most {ENDPOINTS_MAX}")
    return found
