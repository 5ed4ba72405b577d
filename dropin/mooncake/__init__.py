"""`mooncake`, served by mooncake-hicache: the original's names, our engine underneath."""

from mooncake_hicache.compat.environment import refuse_original
from mooncake_hicache.compat.missing import explain_missing_modules

refuse_original()
explain_missing_modules()
