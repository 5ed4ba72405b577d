"""`mooncake.p2p_store`: see `mooncake_hicache.compat.p2p_store`."""

from mooncake_hicache.compat.p2p_store import *  # noqa: F403
from mooncake_hicache.compat.p2p_store import __all__ as __all__
