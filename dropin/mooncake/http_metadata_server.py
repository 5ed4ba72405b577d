"""`mooncake.http_metadata_server`: see `mooncake_hicache.compat.http_metadata_server`."""

import sys

from mooncake_hicache.compat.http_metadata_server import *  # noqa: F403
from mooncake_hicache.compat.http_metadata_server import __all__ as __all__

if __name__ == "__main__":
    sys.exit(main())  # noqa: F405
