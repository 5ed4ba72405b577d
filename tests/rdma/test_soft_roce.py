"""The RDMA transport on real verbs: soft-RoCE in a guest kernel. Run by `make test-rdma`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.rdma import guest, kernel

ROOT = Path(__file__).resolve().parents[2]
BINARY = "HICACHE_CPP_TESTS"
"""Names the program with the C++ tests, which `make test-rdma` builds."""

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

pytestmark = pytest.mark.skipif(
    BINARY not in os.environ or not kernel.cached().exists(),
    reason="needs the C++ tests and the guest kernel: run `make test-rdma`",
)


def run_cpp(tests: str, *, devices: str, timeout_s: float) -> str:
    """Run C++ tests in a guest; return what they printed."""
    outcome = guest.run(
        [os.environ[BINARY], f"--gtest_filter={tests}"],
        devices=len(devices.split(",")) + 1,
        timeout_s=timeout_s,
        memory_mib=4096,
        folder=ROOT,
        environment={"HICACHE_RDMA_DEVICES": devices},
    )
    assert outcome.status == 0, outcome.output
    assert "[  PASSED  ]" in outcome.output, outcome.output
    return outcome.output


@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["RdmaHere", "RdmaChild", "Rdma"])
def test_the_contract_of_transports_holds_on_real_verbs(where: str) -> None:
    # 50000 ops one after the other, each with a registration of its own, take minutes in there;
    # what that test looks for does not depend on the device.
    output = run_cpp(f"*/{where}-*HoweverOften*", devices="rxe0", timeout_s=880)
    assert f"/{where}" in output


@pytest.mark.timeout(200)
def test_one_rail_is_as_fast_as_perftest_on_the_same_rail() -> None:
    speed = f"{os.environ[BINARY]} --gtest_filter=RdmaSpeed.OneRail"
    outcome = guest.run(
        ["bash", "-c", f"{PERFTEST}\n{speed}"],
        devices=1,
        timeout_s=180,
        memory_mib=4096,
        folder=ROOT,
        environment={"HICACHE_RDMA_DEVICES": "rxe0"},
    )
    print(outcome.output)
    assert outcome.status == 0, outcome.output
    gbits = re.findall(r"^\s*1048576\s+\d+\s+[\d.]+\s+([\d.]+)\s", outcome.output, re.MULTILINE)
    ours = dict(re.findall(r"(WRITE|READ) 1 MiB: ([\d.]+) MB/s", outcome.output))
    for name, limit in zip(("WRITE", "READ"), gbits, strict=True):
        ratio = float(ours[name]) * 8 / 1000 / float(limit)
        print(f"{name}: {ratio:.2f} of perftest")
        assert ratio >= 0.9, outcome.output
