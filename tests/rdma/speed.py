"""How fast one rail of soft-RoCE is, beside perftest on the same rail in the same guest.

HICACHE_CPP_TESTS=build/cpp/hicache_tests python -m tests.rdma.speed
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.rdma import guest

ROOT = Path(__file__).resolve().parents[2]
PORT = 18515
PERFTEST = """
set -e
for tool in ib_write_bw ib_read_bw; do
  $tool -d rxe0 -x 1 -s 1048576 -t 16 -D 3 -q 1 -F -p PORT > /tmp/server 2>&1 &
  for i in 1 2 3 4 5 6 7 8 9 10; do ss -ltn | grep -q PORT && break; sleep 0.1; done
  echo $tool
  $tool -d rxe0 -x 1 -s 1048576 -t 16 -D 3 -q 1 -F -p PORT --report_gbits 127.0.0.1
  wait
done
""".replace("PORT", str(PORT))


def main() -> int:
    """Print WRITE and READ of 1 MiB, each as a ratio to perftest."""
    binary = Path(os.environ["HICACHE_CPP_TESTS"]).resolve()
    speed = f"{binary} --gtest_filter=RdmaSpeed.OneRail"
    outcome = guest.run(
        ["bash", "-c", f"{PERFTEST}\n{speed}"],
        devices=1,
        timeout_s=180,
        memory_mib=4096,
        folder=ROOT,
        also=(binary.parent,),
        environment={"HICACHE_RDMA_DEVICES": "rxe0"},
    )
    if outcome.status != 0:
        print(outcome.output)
        return 1
    gbits = re.findall(r"^\s*1048576\s+\d+\s+[\d.]+\s+([\d.]+)\s", outcome.output, re.MULTILINE)
    ours = dict(re.findall(r"(WRITE|READ) 1 MiB: ([\d.]+) MB/s", outcome.output))
    for name, limit in zip(("WRITE", "READ"), gbits, strict=True):
        print(
            f"{name}: {ours[name]} MB/s, {float(ours[name]) / float(limit) / 125:.2f} of perftest"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
