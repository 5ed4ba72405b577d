"""Start the real SGLang server, talk to it, and stop it; on the CPU where there is no GPU.

with Server("demo", [*HICACHE_ARGS]) as server:
    first = server.generate(range(200), 8)
    server.flush()
    again = server.generate(range(200), 8)
    assert again.tokens == first.tokens and again.details["storage"] > 0
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.serving.model import tiny_model

SITE = Path(__file__).resolve().parent / "site"
ROOT = SITE.parents[2]

COMMON_ARGS = shlex.split(
    "--host 127.0.0.1 --page-size 16 --max-running-requests 8 --random-seed 1 --enable-cache-report"
    " --grammar-backend none --sampling-backend pytorch --skip-server-warmup"
)
CPU_ARGS = shlex.split(
    "--device cpu --attention-backend torch_native --disable-overlap-schedule"
    " --max-total-tokens 2048 --mem-fraction-static 0.3"
)
GPU_ARGS = shlex.split("--attention-backend triton --disable-cuda-graph")
HICACHE_ARGS = shlex.split(
    "--enable-hierarchical-cache --hicache-ratio 2 --hicache-storage-backend mooncake"
    " --hicache-storage-prefetch-policy wait_complete"
)
"""What a user types to get our tier, but predictable: a request waits for its whole prefix."""

LINKER_ARGS = shlex.split(
    "--enable-unified-cache-external-linker --unified-cache-external-linker-backend mooncake"
)
"""The same without host pools."""


class ServerError(RuntimeError):
    """The server did not start, stopped, or answered with an error; the message says which."""


@dataclass(frozen=True)
class Result:
    """What one request gave."""

    tokens: list[int]
    logprobs: list[float]
    """Of each token in `tokens`, natural logarithm."""
    cached_tokens: int
    """Tokens of the prompt that were not computed, from whichever tier."""
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    """`device`, `host` and `storage`: cached tokens by tier; `storage_backend`: who stores."""


@functools.cache
def has_gpu() -> bool:
    """Tell whether this machine has an NVIDIA GPU that works. Starts a process the first time."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def server_env(tp: int = 1) -> dict[str, str]:
    """Return the environment variables that the server needs on this machine, beside its own."""
    env = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if not has_gpu():
        path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
        env |= {"PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
        if tp > 1:  # One core for each rank, or SGLang binds all ranks to the same ones.
            cores = sorted(os.sched_getaffinity(0))
            env["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
                str(cores[rank % len(cores)]) for rank in range(tp)
            )
    return env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tp_of(args: Sequence[str]) -> int:
    for name in ("--tp", "--tp-size", "--tensor-parallel-size"):
        if name in args:
            return int(args[args.index(name) + 1])
    return 1


class Server:
    """One running `sglang.launch_server`; blocks while it starts (20 to 40 s on two cores).

    `tag` names its log file, `extra_args` follow our own arguments and so win over them, `env` is
    added to this process's environment. `model` is a folder, by default that of the tiny model.
    Requests may come from any thread; starting and stopping from one. Raises ServerError if the
    server does not come up.
    """

    def __init__(
        self,
        tag: str,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        log_folder: Path | None = None,
        start_timeout_s: float = 300,
    ) -> None:
        self.port = _free_port()
        folder = log_folder or Path(tempfile.gettempdir()) / f"hicache-serving-{os.getuid()}"
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{tag}-{os.getpid()}.log"
        self.command = [
            *[sys.executable, "-W", "ignore", "-m", "sglang.launch_server"],
            *["--model-path", str(model or tiny_model()), "--port", str(self.port)],
            *COMMON_ARGS,
            *(GPU_ARGS if has_gpu() else CPU_ARGS),
            *extra_args,
        ]
        with self.log_path.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **server_env(_tp_of(extra_args)), **(env or {})},
                start_new_session=True,  # So that stop() reaches every process of it.
            )
        atexit.register(self.kill)
        began = time.monotonic()
        self._wait_until_healthy(began + start_timeout_s)
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """All that the server has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def generate(self, ids: Iterable[int], n: int = 8, timeout_s: float = 120) -> Result:
        """Send token ids; return the `n` tokens that greedy decoding puts after them. Blocks."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"temperature": 0, "max_new_tokens": n, "ignore_eos": True},
            "return_logprob": True,
        }
        began = time.monotonic()
        answer = self.post("/generate", body, timeout_s)
        seconds = time.monotonic() - began
        meta = answer["meta_info"]
        return Result(
            tokens=[token for _, token, *_ in meta["output_token_logprobs"]],
            logprobs=[logprob for logprob, *_ in meta["output_token_logprobs"]],
            cached_tokens=meta["cached_tokens"],
            seconds=seconds,
            details=meta.get("cached_tokens_details") or {},
        )

    def post(self, path: str, body: object = None, timeout_s: float = 120) -> Any:
        """Post JSON; return the answer, decoded where it is JSON. Raises ServerError."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body if body is not None else {}).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            raise ServerError(f"POST {path}: {error.code} {error.read()[:500]!r}") from error
        except OSError as error:
            raise ServerError(f"POST {path}: {error}\n{self._log_end()}") from error
        try:
            return json.loads(text)
        except ValueError:
            return text

    def get(self, path: str, timeout_s: float = 30) -> str:
        """Return the text that the server answers to a GET. Raises OSError."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return str(response.read().decode())

    def flush(self, timeout_s: float = 60) -> None:
        """Empty the device's and the host's cache; waits until all pages are written to storage.

        The server refuses with 400 while requests or writes are under way. Raises ServerError.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.post("/flush_cache")
                return
            except ServerError as error:
                if " 400 " not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def stop(self, timeout_s: float = 20) -> None:
        """End the server in good order, by force after `timeout_s`. May be called twice."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End every process of the server at once, as a crash would."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        atexit.unregister(self.kill)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _wait_until_healthy(self, deadline: float) -> None:
        while True:
            if self.process.poll() is not None:
                self.kill()
                raise ServerError(f"exited {self.process.returncode}\n{self._log_end()}")
            try:
                self.get("/health", timeout_s=5)
                return
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"not up in time\n{self._log_end()}")
            time.sleep(0.25)

    def _log_end(self) -> str:
        lines = self.log.splitlines()[-40:]
        return f"--- end of {self.log_path}\n" + "\n".join(lines)
