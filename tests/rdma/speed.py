"""How fast one rail of soft-RoCE is beside perftest, and two rails beside each alone.

    HICACHE_CPP_TESTS=build/cpp/hicache_tests python -m tests.rdma.speed

All in one guest, in turns, so that whatever else the machine does meets everybody. Each figure is
the median of its rounds, each ratio that of the rounds' ratios.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from pathlib import Path

from tests.rdma import guest

ROOT = Path(__file__).resolve().parents[2]
PORT = 18515
ROUNDS = 4
TOOLS = {"WRITE": "ib_write_bw", "READ": "ib_read_bw"}
OURS = {"WRITE": "Write", "READ": "Read"}
PERFTEST = """
TOOL -d rxe0 -x 1 -s 1048576 -t 16 -D 2 -q 1 -F -p PORT > /tmp/server 2>&1 &
for i in 1 2 3 4 5 6 7 8 9 10; do ss -ltn | grep -q PORT && break; sleep 0.1; done
TOOL -d rxe0 -x 1 -s 1048576 -t 16 -D 2 -q 1 -F -p PORT --report_gbits 127.0.0.1 \
  | sed -nE 's/^ *1048576 +[0-9]+ +[0-9.]+ +([0-9.]+) .*/perftest NAME \\1/p'
wait
"""


def script(program: Path) -> str:
    """Return what the guest runs."""
    lines = ["set -e"]
    for _ in range(ROUNDS):
        for name, tool in TOOLS.items():
            perftest = PERFTEST.replace("TOOL", tool).replace("NAME", name)
            lines += [perftest.replace("PORT", str(PORT))]
            lines += [f"{program} --gtest_filter=RdmaSpeed.{OURS[name]}"]
        lines += [f"{program} --gtest_filter=RdmaSpeed.TwoRails"]
    return "\n".join(lines)


def print_beside_perftest(name: str, output: str) -> bool:
    """Print one direction's figures. False: perftest has none."""
    limit = [float(x) * 125 for x in re.findall(rf"perftest {name} (\S+)", output)]
    same, spread = (
        [float(x) for x in re.findall(rf"{name} {what}: (\S+) MB/s", output)]
        for what in ("1 MiB", "1 MiB of 16 MiB")
    )
    # perftest says 0 or inf where the machine's other work kept it from measuring the clock.
    rounds = [
        (own, other, most)
        for own, other, most in zip(same, spread, limit, strict=True)
        if 0 < most < float("inf")
    ]
    if not rounds:
        return False
    ratios = [own / most for own, _, most in rounds]
    others = statistics.median(other / most for _, other, most in rounds)
    print(
        f"{name}: {statistics.median(same):.0f} MB/s, {statistics.median(ratios):.2f} of perftest"
        f" ({min(ratios):.2f} to {max(ratios):.2f} in {len(rounds)} rounds); {others:.2f} when each"
        " MiB is another, where perftest's stays in the cache"
    )
    return True


def main() -> int:
    """Print the figures."""
    program = Path(os.environ["HICACHE_CPP_TESTS"]).resolve()
    environment = {"HICACHE_RDMA_DEVICES": "rxe0"}
    if options := os.environ.get("HICACHE_RDMA_OPTIONS"):
        environment["HICACHE_RDMA_OPTIONS"] = options
    outcome = guest.run(
        ["bash", "-c", script(program)],
        devices=4,
        timeout_s=120 * ROUNDS,
        memory_mib=4096,
        folder=ROOT,
        also=(program.parent,),
        environment=environment,
    )
    if outcome.status != 0:
        print(outcome.output)
        return 1
    for name in TOOLS:
        if not print_beside_perftest(name, outcome.output):
            print(outcome.output)
            return 1
    rails = {
        name: [float(x) for x in re.findall(rf"engine over {name}: (\S+) MB/s", outcome.output)]
        for name in ("rxe0", "rxe1", "rxe0,rxe1")
    }
    first, second, both = rails.values()
    rounds = list(zip(first, second, both, strict=True))
    of_sum = statistics.median(c / (a + b) for a, b, c in rounds)
    of_one = statistics.median(2 * c / (a + b) for a, b, c in rounds)
    print(
        f"engine, two rails: {statistics.median(both):.0f} MB/s, {of_sum:.2f} of the sum of the"
        f" rails alone, {of_one:.2f} of one alone: the guest has one CPU, which one rail fills"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
