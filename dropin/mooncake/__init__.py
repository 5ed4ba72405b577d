"""`mooncake`, served by mooncake-hicache: the original's names, our engine underneath."""

from mooncake_hicache.compat.environment import refuse_original

refuse_original()
