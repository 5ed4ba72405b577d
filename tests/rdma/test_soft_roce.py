"""The RDMA transport on real verbs: soft-RoCE in a guest kernel. Run by `make test-rdma`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rdma import guest, kernel

ROOT = Path(__file__).resolve().parents[2]
BINARY = "HICACHE_CPP_TESTS"
"""Names the program with the C++ tests, which `make test-rdma` builds."""
PYVERBS = Path("/usr/lib/python3/dist-packages/pyverbs")

pytestmark = pytest.mark.skipif(
    BINARY not in os.environ,
    reason="needs the C++ tests and the guest kernel: run `make test-rdma`",
)


@pytest.fixture(autouse=True, scope="module")
def _guest_kernel() -> None:
    # Who asks for these tests is not to take a skipped one for a passed one.
    assert kernel.cached().exists(), f"there is no guest kernel at {kernel.cached()}"


def run_in_guest(command: list[str], *, devices: int, timeout_s: float, ours: str = "") -> str:
    """Run a command in a guest, where it must succeed; return what it printed."""
    outcome = guest.run(
        command,
        devices=devices,
        timeout_s=timeout_s,
        memory_mib=4096,
        folder=ROOT,
        also=(program().parent,),
        environment={"HICACHE_RDMA_DEVICES": ours} if ours else {},
    )
    assert outcome.status == 0, outcome.output
    print(outcome.output)
    return outcome.output


def program() -> Path:
    return Path(os.environ[BINARY]).resolve()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["RdmaHere", "RdmaChild", "Rdma"])
def test_the_contract_of_transports_holds_on_real_verbs(where: str) -> None:
    # 50000 ops one after the other, each with a registration of its own, take minutes in there;
    # what that test looks for does not depend on the device.
    command = [str(program()), f"--gtest_filter=*/{where}-*HoweverOften*"]
    output = run_in_guest(command, devices=2, timeout_s=880, ours="rxe0")
    assert f"/{where}" in output
    assert "[  PASSED  ]" in output


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["ALinkOfOurs", "ALinkOfThePeers", "APeerThatIsKilled"])
def test_engines_outlive_links_and_peers(what: str) -> None:
    command = [str(program()), f"--gtest_filter=RdmaGuest.{what}*"]
    output = run_in_guest(command, devices=4, timeout_s=880)
    assert "[  PASSED  ] 1 test." in output, output


@pytest.mark.timeout(400)
def test_nodes_of_a_cluster_read_each_others_pages() -> None:
    command = [str(program()), "--gtest_filter=RdmaCluster.*"]
    output = run_in_guest(command, devices=4, timeout_s=380)
    assert "[  PASSED  ] 3 tests." in output, output


@pytest.mark.timeout(400)
@pytest.mark.skipif(not PYVERBS.exists(), reason=f"needs python3-pyverbs: {PYVERBS} is missing")
def test_a_peer_that_shares_no_code_with_us_reads_and_writes_our_memory() -> None:
    # The system's Python: the one of the venv need not be that which pyverbs was built for.
    script = Path(__file__).with_name("pyverbs_peer.py")
    command = ["/usr/bin/python3", str(script), str(program())]
    assert "all is well" in run_in_guest(command, devices=2, timeout_s=380)
