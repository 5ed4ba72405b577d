"""What an adapter answers when something goes wrong: a miss, and never an exception."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from sglang.srt.mem_cache.hicache_storage import PoolTransfer

__all__ = ["all_false", "all_false_v2", "never_raises"]

logger = logging.getLogger(__name__)

Method = TypeVar("Method", bound=Callable[..., Any])


def never_raises(default: Callable[..., Any]) -> Callable[[Method], Method]:
    """Turn an exception into `default(*arguments of the method)`, and log it to `self._log`."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self._log.warning(
                    f"raised {method.__name__} {type(error).__name__}",
                    "%s failed and counts as a miss: %s: %s",
                    method.__name__,
                    type(error).__name__,
                    error,
                )
                logger.debug("%s failed", method.__name__, exc_info=True)
                return default(*args, **kwargs)

        return cast("Method", guarded)

    return wrap


def all_false(keys: Sequence[str], *_args: Any, **_kwargs: Any) -> list[bool]:
    """Return a miss for each key."""
    return [False] * len(keys)


def all_false_v2(
    transfers: Sequence[PoolTransfer], *_args: Any, **_kwargs: Any
) -> dict[Any, list[bool]]:
    """Return a miss for each key of each transfer."""
    return {transfer.name: [False] * len(transfer.keys or ()) for transfer in transfers}
