"""A real SGLang server with a Qwen3-8B-shaped model of random weights, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 300
REQUEST_TIMEOUT_S = 120
KV_SIZE_PER_TOKEN = 36 * 8 * 128 * 2 * 2  # Layers, heads, head size, K and V, bfloat16: 144 KiB.
PAGE_TOKENS = 64

MODEL: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "use_cache": True,
    "use_sliding_window": False,
    "max_window_layers": 36,
}

FLAGS = (
    "--load-format dummy --skip-tokenizer-init --attention-backend triton "
    "--sampling-backend pytorch --grammar-backend none --disable-cuda-graph --host 127.0.0.1 "
    f"--page-size {PAGE_TOKENS} --mem-fraction-static 0.6 --skip-server-warmup --random-seed 1 "
    "--enable-cache-report --chunked-prefill-size 16384"
).split()


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent and answered (monotonic seconds), and what came back."""

    sent_s: float
    ttft_s: float
    total_s: float
    tokens: tuple[int, ...]
    cached: dict[str, int]
    """Tokens of the prompt found on the device, in the host pool, and in storage."""

    @property
    def source(self) -> str:
        """Where most of the prompt came from: `L1`, `L2`, `L3` or `cold`."""
        names = {"device": "L1", "host": "L2", "storage": "L3"}
        found = {name: self.cached.get(key, 0) for key, name in names.items()}
        best = max(found, key=lambda name: found[name])
        return best if found[best] else "cold"


def prompt(seed: object, length: int) -> list[int]:
    """Return a prompt of random tokens that no other seed shares a prefix with."""
    chosen = random.Random(str(seed))
    return [chosen.randrange(1000, 150_000) for _ in range(length)]


def write_model(folder: Path) -> None:
    """Write the model's configuration; its weights are random, the same at each start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    end = {"eos_token_id": MODEL["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(end), encoding="utf-8")


def _is_overridden(flag: str, given: Sequence[str]) -> bool:
    return flag == "--disable-cuda-graph" and any(g.startswith("--cuda-graph-") for g in given)


@dataclass
class Server:
    """A running server. `with Server(...) as server`: waits until it answers; stops it at the end.

    Raises:
        RuntimeError: It ended or did not answer within five minutes; the end of its log is shown.
    """

    folder: Path
    flags: Sequence[str]
    environment: dict[str, str]
    log: Path
    start_s: float = 0.0
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        write_model(self.folder / "model")
        own = [flag for flag in FLAGS if not _is_overridden(flag, self.flags)]
        command = [sys.executable, "-W", "ignore", "-m", "sglang.launch_server", *own]
        command += ["--model-path", str(self.folder / "model"), "--port", str(self.port)]
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *self.flags],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            self._wait_ready(begun)
        except BaseException:
            self._stop()
            raise
        self.start_s = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _wait_ready(self, begun: float) -> None:
        assert self._process is not None
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._get("/health") == 200:
                    return
            if self._process.poll() is not None or time.monotonic() - begun > START_TIMEOUT_S:
                text = self.log.read_text(encoding="utf-8", errors="replace")[-5000:]
                raise RuntimeError(f"the server did not start ({self._process.poll()}):\n{text}")
            time.sleep(0.3)

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        for number, wait_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 30)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
        # The scheduler is a grandchild: gone once its group is.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def flush(self) -> float:
        """Empty L1 and L2, once the writes to storage are done. Returns the seconds it took."""
        begun = time.monotonic()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("POST", "/flush_cache")
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                return time.monotonic() - begun
            if time.monotonic() - begun > REQUEST_TIMEOUT_S:
                raise RuntimeError(f"/flush_cache still answers {status}")
            time.sleep(0.1)

    def clear_storage(self) -> None:
        """Drop what the storage keeps. The memory that it has stays its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/hicache/storage-backend/clear")
        response = connection.getresponse()
        said = response.read()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"/hicache/storage-backend/clear: {response.status} {said[:500]!r}")

    def ask(self, ids: Sequence[int], new_tokens: int, on_token: Any = None) -> Answer:
        """Send one prompt and read the answer token by token."""
        sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
        body = json.dumps({"input_ids": ids, "sampling_params": sampling, "stream": True}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        connection.connect()
        sent = time.monotonic()
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"/generate: {response.status} {response.read()[:500]!r}")
        first = 0.0
        last: dict[str, Any] = {}
        tokens: list[int] = []
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            first = first or time.monotonic()
            last = json.loads(line[6:])
            if on_token is not None:
                on_token(time.monotonic())
            part = list(last.get("output_ids") or ())
            # All so far or only the new ones, depending on the version.
            so_far = last.get("meta_info", {}).get("completion_tokens")
            tokens = part if len(part) == so_far else tokens + part
        done = time.monotonic()
        connection.close()
        meta = last.get("meta_info", {})
        details = meta.get("cached_tokens_details") or {"device": meta.get("cached_tokens", 0)}
        cached = {key: value for key, value in details.items() if isinstance(value, int)}
        return Answer(sent, first - sent, done - sent, tuple(tokens), cached)
