"""`transfer_engine_topology_dump`: prints this machine's topology as JSON."""

import sys

from mooncake_hicache.compat.topology_dump import *  # noqa: F403
from mooncake_hicache.compat.topology_dump import __all__ as __all__

if __name__ == "__main__":
    sys.exit(main())  # noqa: F405
