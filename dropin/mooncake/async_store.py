"""`mooncake.async_store`: see `mooncake_hicache.compat.store.async_store`."""

from mooncake_hicache.compat.store.async_store import *  # noqa: F403
from mooncake_hicache.compat.store.async_store import __all__ as __all__
