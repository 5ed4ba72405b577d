"""`mooncake_client`: see `mooncake_hicache.compat.store.client_command`."""

import sys

from mooncake_hicache.compat.store.client_command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
