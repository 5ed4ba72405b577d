"""`mooncake.engine`: see `mooncake_hicache.compat.engine`."""

from mooncake_hicache.compat.engine import *  # noqa: F403
from mooncake_hicache.compat.engine import __all__ as __all__
