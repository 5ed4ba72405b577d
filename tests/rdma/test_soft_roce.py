"""The RDMA transport on real verbs: soft-RoCE in a guest kernel. Run by `make test-rdma`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rdma import guest, kernel

ROOT = Path(__file__).resolve().parents[2]
BINARY = "HICACHE_CPP_TESTS"
"""Names the program with the C++ tests, which `make test-rdma` builds."""

pytestmark = pytest.mark.skipif(
    BINARY not in os.environ or not kernel.cached().exists(),
    reason="needs the C++ tests and the guest kernel: run `make test-rdma`",
)


def run_cpp(tests: str, *, devices: str, timeout_s: float) -> str:
    """Run C++ tests in a guest; return what they printed."""
    binary = Path(os.environ[BINARY]).resolve()
    outcome = guest.run(
        [str(binary), f"--gtest_filter={tests}"],
        devices=len(devices.split(",")) + 1,
        timeout_s=timeout_s,
        memory_mib=4096,
        folder=ROOT,
        also=(binary.parent,),
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
