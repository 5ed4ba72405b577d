"""`transfer_engine_bench`: reads or writes between two processes and tells how fast."""

import sys

from mooncake_hicache.compat.transfer_engine_bench import *  # noqa: F403
from mooncake_hicache.compat.transfer_engine_bench import __all__ as __all__

if __name__ == "__main__":
    sys.exit(main())  # noqa: F405
