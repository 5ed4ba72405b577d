"""`mooncake.store`: see `mooncake_hicache.compat.store`."""

from mooncake_hicache.compat.store import *  # noqa: F403
from mooncake_hicache.compat.store import __all__ as __all__
