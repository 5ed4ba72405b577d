"""Follows live updates of the weights, so that pages of other weights are never met.

SGLang can replace the weights of a running server (`/update_weights_from_disk`, `_tensor`,
`_distributed`, `_ipc`, and sessions of `/begin_weight_update`). It drops its own caches when asked
to and tells its storage nothing. So hooks on the scheduler's weight updater note here what happens,
and adapters look here before each call:

* from the begin of an update on, whether it succeeds or not, pages belong to weights of a new name;
* until the engine has flushed its caches after that, nothing is stored or found: what it still
  holds was computed with other weights. A flush also waits for the storage threads and empties
  their queues, so no call from before it can write afterwards.

A name starts with random bytes of this engine, so no other engine, and no later one, ever has the
same. All TP ranks get these bytes from their first rank, and count the same updates: where ranks
hold copies of the same KV (MLA), all of them read what one wrote. A name ends in the version that
was given with a whole and successful update, if it differs from the version before: with it the
pages of a version are found again when the engine returns to it. A version that had to stand for
two sets of weights is never trusted again.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from mooncake_hicache.sglang.server import keeps_pages, server_option

__all__ = ["HOOK_TARGETS", "Weights", "WeightsState", "is_watched", "live", "watch"]

logger = logging.getLogger(__name__)

_SCHEDULER = "sglang.srt.managers.scheduler"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_WHOLE = ("update_weights_from_disk", "update_weights_from_ipc")
_IN_PARTS = ("update_weights_from_tensor", "update_weights_from_distributed")
_SESSION = ("begin_weight_update", "end_weight_update")
_FLUSH = f"{_SCHEDULER}.Scheduler.flush_cache"

HOOK_TARGETS = (*(f"{_UPDATER}.{name}" for name in (*_WHOLE, *_IN_PARTS)), _FLUSH)
"""What must be there for updates to be noticed, in every version that is supported."""


class WeightsState(NamedTuple):
    """What an adapter must know about the weights in use."""

    name: str | None
    """Names them; None as long as they are those that the server started with."""
    is_settled: bool
    """Whether all KV that the engine holds was computed with them."""


class Weights:
    """The weights of this process. Thread-safe; never blocks, but for `changing` (see there)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = WeightsState(None, True)
        self._is_in_session = False
        self._engine: str | None = None
        self._updates = 0
        self._version: str | None = None
        self._distrusted: set[str] = set()

    def state(self) -> WeightsState:
        """Return the state now."""
        with self._lock:
            name, is_settled = self._state
            return WeightsState(name, is_settled and not self._is_in_session)

    def changing(self, group: Any = None) -> None:
        """Note that weights are about to change. From now on they have a new name.

        Args:
            group: the process group of the TP ranks, all of which make this call. The first call
                waits for all of them. None: this rank is alone.
        """
        with self._lock:
            engine, version = self._engine, self._version
        if engine is None:
            engine = _common_bytes(group)
            given = server_option("weight_version")
            version = None if given is None else str(given)
        with self._lock:
            self._engine, self._version = engine, version
            self._updates += 1
            self._state = WeightsState(f"{engine}/{self._updates}", False)

    def changed(self, version: str | None, *, is_success: bool) -> None:
        """Note that the update is over, and the version that names all weights from now on."""
        if version is None:
            return
        with self._lock:
            if not is_success or version == self._version:
                self._distrusted.add(version)
            if is_success:
                self._version = version
            if version not in self._distrusted:
                name = f"{self._engine}/version {version}"
                self._state = self._state._replace(name=name)

    def flushed(self) -> None:
        """Note that the engine has dropped all KV that it held."""
        with self._lock:
            self._state = self._state._replace(is_settled=True)

    def set_in_session(self, is_in_session: bool) -> None:
        """Note that a session of updates begins or ends; in one, weights are in pieces."""
        with self._lock:
            self._is_in_session = is_in_session


def _common_bytes(group: Any) -> str:
    own = secrets.token_hex(16)
    if group is None or not keeps_pages():
        return own
    try:
        import torch

        if torch.distributed.get_world_size(group) == 1:
            return own
        shared = [own]
        first = torch.distributed.get_process_group_ranks(group)[0]
        torch.distributed.broadcast_object_list(shared, src=first, group=group)
        return shared[0]
    except Exception as error:  # noqa: BLE001 - ranks that disagree miss pages, no more
        logger.warning("ranks cannot agree on a name for the new weights: %r", error)
        return own


_live = Weights()


def live() -> Weights:
    """Return the weights of this process."""
    return _live


# ---- hooks; the scheduler's thread calls them, on all ranks for the same requests


class _Session:
    """What one session of updates has loaded so far."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.is_success = True
        self.versions: set[str | None] = set()


_session: _Session | None = None


def _version_of(request: Any) -> str | None:
    version = getattr(request, "weight_version", None)
    return None if version is None else str(version)


def _is_success(result: Any) -> bool:
    return bool(getattr(result, "success", False))


def _group_of(updater: Any) -> Any:
    return getattr(updater, "tp_cpu_group", None)


def _around_whole(original: Callable[..., Any], updater: Any, request: Any, *args: Any) -> Any:
    live().changing(_group_of(updater))
    result = None
    try:
        result = original(updater, request, *args)
        return result
    finally:
        live().changed(_version_of(request), is_success=_is_success(result))
        _say("after an update of the weights")


def _around_part(original: Callable[..., Any], updater: Any, request: Any, *args: Any) -> Any:
    if _session is None and getattr(updater, "_session", updater) is None:
        return original(updater, request, *args)  # Refused: versions with sessions insist on one.
    live().changing(_group_of(updater))
    result = None
    try:
        result = original(updater, request, *args)
        return result
    finally:
        if _session is None:
            # One of several calls with the same version, and nothing says which is the last: the
            # version names none of the states between, and not the last one either.
            live().changed(_version_of(request), is_success=False)
            _say("after an update of the weights")
        else:
            _session.is_loaded = True
            _session.is_success &= _is_success(result)
            _session.versions.add(_version_of(request))


def _around_begin(original: Callable[..., Any], updater: Any, *args: Any) -> Any:
    global _session
    if getattr(updater, "_session", None) is not None:
        return original(updater, *args)  # Refused: one is open.
    live().changing(_group_of(updater))
    live().set_in_session(True)
    _session = _Session()
    return original(updater, *args)


def _around_end(original: Callable[..., Any], updater: Any, *args: Any) -> Any:
    global _session
    session = _session
    if session is None:
        return original(updater, *args)
    if not session.is_loaded:
        # Weights came past the engine (RDMA), at any time until now.
        live().changing(_group_of(updater))
    result = None
    try:
        result = original(updater, *args)
        return result
    finally:
        versions = session.versions - {None}
        is_whole = session.is_success and len(session.versions) == 1 and _is_success(result)
        for version in versions:
            live().changed(version, is_success=is_whole)
        live().set_in_session(False)
        _session = None
        _say("after a session of weight updates")


def _after_flush(result: Any, *_args: Any, **_kwargs: Any) -> None:
    if result:
        live().flushed()


def _say(when: str) -> None:
    if not keeps_pages():
        return
    name, is_settled = live().state()
    if is_settled:
        logger.info("%s: pages of other weights are not seen any more (now %s)", when, name)
    else:
        logger.warning(
            "%s: no page is stored or found until the caches are flushed, since they hold KV of "
            "the weights before; call /flush_cache, or update with flush_cache=true",
            when,
        )


def watch() -> bool:
    """Register the hooks in a process that has a scheduler. Returns whether it has. May be called
    again. They take effect when SGLang applies the hooks of its plugins."""
    # Importing the scheduler where there is none would cost other processes seconds.
    if _SCHEDULER not in sys.modules:
        return False
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks: dict[str, Any] = {f"{_UPDATER}.{name}": _around_whole for name in _WHOLE}
    hooks |= {f"{_UPDATER}.{name}": _around_part for name in _IN_PARTS}
    hooks |= {f"{_UPDATER}.{_SESSION[0]}": _around_begin, f"{_UPDATER}.{_SESSION[1]}": _around_end}
    for target, hook in hooks.items():
        if not _exists(target):
            # Sessions came after the first version that is supported.
            if not target.endswith(_SESSION):
                logger.error("%s is not there: updates of that kind go unnoticed", target)
            continue
        _register_once(HookRegistry, target, hook, HookType.AROUND)
    if _exists(_FLUSH):
        _register_once(HookRegistry, _FLUSH, _after_flush, HookType.AFTER)
    return True


def _register_once(registry: Any, target: str, hook: Any, kind: Any) -> None:
    if not any(known is hook for _, known, *_ in registry._hooks.get(target, ())):
        registry.register(target, hook, kind)


def _exists(target: str) -> bool:
    import pkgutil

    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def is_watched() -> bool:
    """Whether updates of the weights in this process will be noticed."""
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry
    except ImportError:
        return False
    return all(target in HookRegistry._patched for target in HOOK_TARGETS)
