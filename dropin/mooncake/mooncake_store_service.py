"""`mooncake.mooncake_store_service`: see `mooncake_hicache.compat.store.rest_command`."""

import sys

from mooncake_hicache.compat.store.rest_command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
