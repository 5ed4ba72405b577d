"""`mooncake.mooncake_config`: see `mooncake_hicache.compat.store.config`."""

from mooncake_hicache.compat.store.config import *  # noqa: F403
from mooncake_hicache.compat.store.config import __all__ as __all__
from mooncake_hicache.compat.store.settings import segment_size_of as _parse_segment_size  # noqa: F401
