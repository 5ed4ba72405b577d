"""`mooncake_master`: see `mooncake_hicache.compat.master`."""

import sys

from mooncake_hicache.compat.master import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
