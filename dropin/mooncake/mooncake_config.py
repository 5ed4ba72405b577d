"""`mooncake.mooncake_config`: see `mooncake_hicache.compat.store.config`."""

from mooncake_hicache.compat.store.config import *  # noqa: F403
from mooncake_hicache.compat.store.config import __all__ as __all__
