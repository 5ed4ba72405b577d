"""Who of several masters leads: whoever holds a leased key in etcd.

    /mooncake-hicache/CLUSTER/leader   the leader's address, gone when its lease ends
    /mooncake-hicache/CLUSTER/epoch    the newest epoch that anybody led with

A leader counts from the moment before it asked for its lease, or renewed it, and stops leading by
its own clock a while before the lease can have ended in etcd: two never believe that they lead.
One that was stopped meanwhile (SIGSTOP, a long pause) gives up as soon as it runs; until then its
older epoch makes whoever has heard of the newer one turn away.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from etcd3gw import Etcd3Client, Lease

from mooncake_hicache.errors import Error
from mooncake_hicache.metadata.etcd_calls import EtcdCalls

__all__ = ["Election", "epoch_by_clock"]

_log = logging.getLogger("mooncake_hicache.master")

SAFETY_SHARE = 0.2
"""Of the lease's time: given up so much earlier, for clocks that do not run alike."""
RENEWALS_PER_TTL = 4
EPOCH_TRIES = 5


def epoch_by_clock() -> int:
    """Return an epoch later than those of earlier lives, as far as the clock goes.

    Microseconds: no two masters of a cluster begin in the same one, and the number stays below
    2^53, where JSON's end.
    """
    return time.time_ns() // 1000


class Election:
    """Campaigns until it is stopped, with two threads of its own.

    Args:
        etcd: `host:port[,host:port]`.
        cluster: Masters of one cluster name the same one.
        address: What others are told of this master.
        ttl_s: Of the lease; etcd grants none below 2.
        heard: Returns the newest epoch that anybody spoke of.
        on_change: Called with the epoch to lead with, or with 0 to lead no longer; from one thread
            at a time, and must be done when it returns.

    Raises:
        InvalidArgumentError: An endpoint is none.
    """

    def __init__(
        self,
        etcd: str,
        cluster: str,
        address: str,
        ttl_s: int,
        heard: Callable[[], int],
        on_change: Callable[[int], None],
    ) -> None:
        self._calls = EtcdCalls(etcd, ttl_s * (1 - SAFETY_SHARE) / 2)
        self._leader_key = f"/mooncake-hicache/{cluster}/leader"
        self._epoch_key = f"/mooncake-hicache/{cluster}/epoch"
        self._address, self._ttl_s = address, ttl_s
        self._heard, self._on_change = heard, on_change
        self._changed = threading.Condition()
        # Guarded by it:
        self._epoch = 0
        self._valid_until = 0.0
        self._leader = ""
        self._is_stopped = False
        # Of the campaigning thread:
        self._lease_id = 0
        self._trouble = ""
        self._threads = [
            threading.Thread(target=self._campaign, name="hicache-election", daemon=True),
            threading.Thread(target=self._guard, name="hicache-fence", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def leader(self) -> str:
        """The address of whoever led when it was last looked; empty: nobody, or not known."""
        with self._changed:
            return self._leader

    def stop(self) -> None:
        """Lead no longer, and let another one do so at once. Blocks while etcd is told."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._give_up("")
        if self._lease_id:
            lease_id = self._lease_id
            try:
                self._calls.call(lambda client: Lease(lease_id, client).revoke())
            except Error as error:
                _log.warning("the lease in etcd ends by itself: %s", error)

    # ---- the thread that campaigns and renews

    def _campaign(self) -> None:
        while not self._wait(self._ttl_s / RENEWALS_PER_TTL):
            try:
                self._renew() if self._leads() else self._try_to_win()
                self._trouble = ""
            except Exception as error:  # noqa: BLE001 - who gives up here never leads again.
                trouble = str(error) if isinstance(error, Error) else f"etcd said: {error!r}"
                if trouble != self._trouble:
                    _log.warning("no election at present: %s", trouble)
                self._trouble = trouble

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether it was stopped."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_stopped, seconds)

    def _leads(self) -> bool:
        with self._changed:
            return self._epoch != 0

    def _try_to_win(self) -> None:
        leader = self._calls.call(lambda client: client.get(self._leader_key))
        with self._changed:
            self._leader = leader[0].decode(errors="replace") if leader else ""
        if leader:
            return
        began = time.monotonic()
        self._lease_id = self._calls.call(lambda client: client.lease(ttl=self._ttl_s).id)
        if not self._calls.call(self._take_key):
            return
        epoch = self._next_epoch()
        with self._changed:
            valid_until = began + self._ttl_s * (1 - SAFETY_SHARE)
            if epoch == 0 or time.monotonic() >= valid_until or self._is_stopped:
                return
            self._epoch, self._valid_until, self._leader = epoch, valid_until, self._address
            self._on_change(epoch)
            self._changed.notify_all()
        _log.info("leads with epoch %d", epoch)

    def _take_key(self, client: Etcd3Client) -> bool:
        lease = Lease(self._lease_id, client)
        return client.create(self._leader_key, self._address, lease=lease)

    def _renew(self) -> None:
        began = time.monotonic()
        ttl_s = self._calls.call(lambda client: Lease(self._lease_id, client).refresh())
        if ttl_s <= 0:
            self._give_up("its lease had ended in etcd")
            return
        with self._changed:
            if self._epoch == 0:
                return  # Too late: it was given up meanwhile.
            self._valid_until = began + self._ttl_s * (1 - SAFETY_SHARE)
            self._changed.notify_all()
        if self._heard() > self._epoch:
            self._lead_anew()

    def _lead_anew(self) -> None:
        """Somebody knows a newer epoch than ours, which etcd has lost: nobody would listen."""
        epoch = self._next_epoch()
        with self._changed:
            if self._epoch == 0 or epoch <= self._epoch:
                return
            self._epoch = epoch
            self._on_change(epoch)
        _log.warning("leads anew with epoch %d: a newer one than its own was heard of", epoch)

    def _next_epoch(self) -> int:
        """Return a new epoch, kept in etcd; 0 if the key was lost meanwhile."""
        for _ in range(EPOCH_TRIES):
            kept = self._calls.call(lambda client: client.get(self._epoch_key, metadata=True))
            newest, revision = 0, 0
            if kept:
                value, about = kept[0]
                newest = int(value) if value.isdigit() else 0
                revision = int(about["mod_revision"])
            # The clock counts where etcd has forgotten what there was.
            epoch = max(newest + 1, self._heard() + 1, epoch_by_clock())
            if self._calls.call(self._put_epoch(epoch, revision)):
                return epoch
        return 0

    def _put_epoch(self, epoch: int, revision: int) -> Callable[[Etcd3Client], bool]:
        """Only if nobody else has put one, and while the leader's key is ours."""
        transaction: dict[str, Any] = {
            "compare": [
                {
                    "key": _encoded(self._epoch_key),
                    "target": "MOD",
                    "result": "EQUAL",
                    "mod_revision": revision,
                },
                {
                    "key": _encoded(self._leader_key),
                    "target": "LEASE",
                    "result": "EQUAL",
                    "lease": self._lease_id,
                },
            ],
            "success": [
                {"request_put": {"key": _encoded(self._epoch_key), "value": _encoded(str(epoch))}}
            ],
            "failure": [],
        }
        return lambda client: bool(client.transaction(transaction).get("succeeded", False))

    # ---- the thread that gives up in time

    def _guard(self) -> None:
        while True:
            with self._changed:
                if self._is_stopped:
                    return
                if self._epoch == 0:
                    self._changed.wait()
                    continue
                left_s = self._valid_until - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
            self._give_up("etcd did not renew its lease in time")

    def _give_up(self, why: str) -> None:
        with self._changed:
            if self._epoch == 0:
                return
            if why.startswith("etcd") and time.monotonic() < self._valid_until:
                return  # It was renewed at the last moment.
            self._on_change(0)
            self._epoch = 0
            self._leader = ""
        if why:
            _log.warning("leads no longer: %s", why)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
