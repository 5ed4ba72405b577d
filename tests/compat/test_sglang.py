"""SGLang's own code on the drop-in: its wrapper of the engine, and prefill and decode servers."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compat.processes import DROPIN, Program
from tests.serving.server import SITE, Server, _free_port, has_gpu

needs_sglang = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="SGLang is not installed: make installs it"
)

WRAPPER = """
import sys
import numpy as np
from sglang.srt.distributed.device_communicators import mooncake_transfer_engine as module

def begin(seed, count=16, size=65536):
    wrapper = module.init_mooncake_transfer_engine("127.0.0.1", gpu_id=0, ib_device=None)
    assert module.get_mooncake_transfer_engine() is wrapper
    layers = [np.full(size, seed + index, np.uint8) for index in range(count)]
    pointers = [layer.ctypes.data for layer in layers]
    assert wrapper.batch_register(pointers, [size] * count) == 0
    return wrapper, layers, pointers
"""

DECODE = """
wrapper, layers, pointers = begin(100)
say(wrapper.get_session_id(), pointers)
hear()
say([int(layer.min()) for layer in layers], [int(layer.max()) for layer in layers])
assert wrapper.batch_deregister(pointers) == 0
assert wrapper.batch_deregister(pointers) == -3
"""

PREFILL = """
session, theirs = hear()
wrapper, layers, pointers = begin(1)
assert wrapper.send_probe(session) == 0
assert wrapper.send_probe("127.0.0.1:1") != 0
assert wrapper.transfer_sync(session, pointers[0], theirs[0], 65536) == 0
assert wrapper.batch_transfer_sync(session, pointers[1:], theirs[1:], [65536] * 15) == 0
assert wrapper.batch_transfer_sync(session, pointers, [1] * 16, [65536] * 16) < 0
assert wrapper.transfer_sync("127.0.0.1:1", pointers[0], theirs[0], 65536) < 0
wrapper.deregister(pointers[0])
try:
    wrapper.deregister(pointers[0])
except RuntimeError as error:
    say("refused" if "ret=-3" in str(error) else str(error))
"""


def site_environment() -> dict[str, str]:
    """SGLang without a GPU, and the drop-in."""
    paths = [str(DROPIN), *([] if has_gpu() else [str(SITE)]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "SGLANG_USE_CPU_ENGINE": "1"}


@needs_sglang
@pytest.mark.parametrize("transports", ["local,tcp", "tcp"])
def test_the_wrapper_of_the_engine(transports: str) -> None:
    extra = {**site_environment(), "MOONCAKE_HICACHE_TRANSFER_TRANSPORTS": transports}
    with Program(WRAPPER + DECODE, extra) as decode, Program(WRAPPER + PREFILL, extra) as prefill:
        prefill.say(*decode.hear())
        assert prefill.hear() == ["refused"]
        decode.say()
        expected = list(range(1, 17))
        assert decode.hear() == [expected, expected]
        assert prefill.process.wait(30) == 0
        assert decode.process.wait(30) == 0


# ---- a prefill and a decode server


class Pair:
    """Prefill and decode, which find each other at a bootstrap port."""

    def __init__(self) -> None:
        self.bootstrap = _free_port()
        started: dict[str, Server | BaseException] = {}

        def start(role: str) -> None:
            arguments = ["--disaggregation-mode", role, "--disaggregation-transfer-backend"]
            arguments += ["mooncake", "--disaggregation-bootstrap-port", str(self.bootstrap)]
            try:
                started[role] = Server(f"compat-{role}", arguments, site_environment())
            except BaseException as error:  # noqa: BLE001 - raised in the test's thread.
                started[role] = error

        _together(start, "prefill", "decode")
        for found in started.values():
            if isinstance(found, BaseException):
                raise found
        self.servers: dict[str, Any] = started

    def generate(self, prompt: list[int], room: int) -> dict[str, Any]:
        """What a router does: the same request to both, with the number of a room."""
        answers: dict[str, Any] = {}
        body = {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.bootstrap,
            "bootstrap_room": room,
        }

        def ask(role: str) -> None:
            answers[role] = self.servers[role].post("/generate", body, 120)

        _together(ask, "prefill", "decode")
        return answers

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()


def _together(call: Any, *arguments: str) -> None:
    threads = [threading.Thread(target=call, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.stop()


@needs_sglang
@pytest.mark.serving
@pytest.mark.skipif(has_gpu(), reason="each of the two servers would want a GPU of its own")
def test_decode_goes_on_where_prefill_has_left_off(pair: Pair) -> None:
    prompts = [[(7 * i + 31 * turn) % 250 for i in range(200 + 90 * turn)] for turn in range(3)]
    found = [pair.generate(prompt, 1000 + turn) for turn, prompt in enumerate(prompts)]
    log = "".join(server.log for server in pair.servers.values())
    pair.stop()
    with Server("compat-plain") as plain:
        for prompt, answer in zip(prompts, found, strict=True):
            expected = plain.generate(prompt).tokens
            # Prefill gives the first token; decode all, from keys and values that it was sent.
            assert answer["prefill"]["output_ids"] == expected[:1]
            assert answer["decode"]["output_ids"] == expected
    assert len({tuple(answer["decode"]["output_ids"]) for answer in found}) == len(prompts)
    assert "Mooncake memory registration failed" not in log
    assert "KVTransferError" not in log
