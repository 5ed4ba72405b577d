"""Build, start servers and measure, on the GPU machine: `python3 -m bench.gpu PHASE… --out FOLDER`.

Phases, in the order given:

    legs       bandwidth of each leg beside the machine's limits
    levers     what could make hits cheaper: huge pages, populated memory, copies by the GPU
    none       SGLang without HiCache
    l2         HiCache without storage
    ours       HiCache with our tier
    restart    our tier after a restart of the engine (run `ours` before, on the same machine)
    file       HiCache with SGLang's file backend, on tmpfs
    turns      conversations with growing context, on all of the above

Writes FOLDER/gpu.json after each phase, and logs. A phase is left out when less time is left than
it may take (`--time-limit`), and the result says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import cases
from bench.gpu.install import REPOSITORY, environment, install
from bench.gpu.multiturn import conversations
from bench.gpu.server import Server

WORK = Path("/tmp/hicache-gpu")
FILE_FOLDER = Path("/dev/shm/hicache-file")

STORAGE = {
    "ours": ["--hicache-storage-backend", "mooncake"],
    "file": ["--hicache-storage-backend", "file"],
}


class Run:
    """One call of this command: its options, its results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        self.site = Path(options.site)
        self.lengths = [int(length) for length in options.lengths.split(",")]
        self.results: dict[str, Any] = {
            "command": "python3 -m bench.gpu " + " ".join(sys.argv[1:]),
            "machine": machine(),
            "servers": {},
            "samples": [],
        }

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return float(self.options.time_limit) - (time.monotonic() - self.begun)

    def save(self) -> None:
        """Write what there is."""
        text = json.dumps(self.results, indent=1)
        (self.out / "gpu.json").write_text(text + "\n", encoding="utf-8")

    def pack_logs(self) -> None:
        """Put the logs of servers and node into one file."""
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as tar:
            for path in [*WORK.glob("*.log"), *WORK.glob("*.jsonl"), *WORK.glob("node/*.log")]:
                tar.add(path, path.name)

    def environment(self, tag: str) -> dict[str, str]:
        """Return the environment of a server."""
        found = {
            **environment(self.site),
            "MOONCAKE_HICACHE_RUNTIME_DIR": str(WORK / "node"),
            "MOONCAKE_HICACHE_POOL_SIZE": self.options.pool,
            "MOONCAKE_HICACHE_SSD": "off",
            "MOONCAKE_HICACHE_SGLANG": "required" if "ours" in tag or tag == "restart" else "off",
            "HICACHE_BENCH_EVENTS": str(WORK / f"{tag}.jsonl"),
            "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(FILE_FOLDER),
        }
        found.update(item.split("=", 1) for item in self.options.env)
        return found

    def server(self, tag: str, kind: str, device_tokens: int, l2_gb: int) -> Server:
        """Return a server of a kind: `none`, `l2`, `ours` or `file`."""
        flags = ["--max-total-tokens", str(device_tokens)]
        if kind != "none":
            flags += ["--enable-hierarchical-cache", "--hicache-size", str(l2_gb)]
        flags += STORAGE.get(kind, [])
        flags += self.options.flag
        WORK.mkdir(parents=True, exist_ok=True)
        (WORK / f"{tag}.jsonl").unlink(missing_ok=True)
        self.results["servers"][tag] = {"flags": flags}
        return Server(WORK, flags, self.environment(tag), WORK / f"{tag}.log")


def machine() -> dict[str, object]:
    """Return what this runs on."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "gpu": gpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions(run: Run) -> dict[str, str]:
    """Return the versions of what is installed, as the servers see them."""
    code = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps({n: m.version(n) for n in "
        "('sglang', 'torch', 'triton', 'mooncake-hicache')}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(run.site), cwd="/tmp"
    )
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def phase_legs(run: Run) -> None:
    """Measure the legs, in a process of their own."""
    _in_own_process(run, "legs", str(run.options.touch))


def phase_levers(run: Run) -> None:
    """Measure what could make a hit cheaper, in a process of its own."""
    _in_own_process(run, "levers")


def _in_own_process(run: Run, name: str, *args: str) -> None:
    command = [sys.executable, "-m", f"bench.gpu.{name}", *args]
    done = subprocess.run(
        command,
        env=environment(run.site),
        cwd="/tmp",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"bench.gpu.{name} ended with {done.returncode}")
    run.results[name] = json.loads(done.stdout.splitlines()[-1])
    for what, value in run.results[name].items():
        print(name, what, _rounded(value), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return f"{value / 1e9:.1f} GB/s" if value > 1e6 else f"{value:.6g}"
    return value


def _keep(run: Run, samples: cases.Samples, server: Server, **more: object) -> None:
    run.results["samples"] += samples.rows
    run.results["servers"][samples.tag].update(start_s=round(server.start_s, 1), **more)
    print(f"{samples.tag}: started in {server.start_s:.0f} s; {more}", flush=True)
    print("\n".join(samples.summary()), flush=True)


def _split_hits(run: Run, tag: str) -> None:
    """Say where the time of the hits from storage went."""
    events = cases.read_events(WORK / f"{tag}.jsonl")
    table: dict[tuple[int, str], list[dict[str, float]]] = {}
    for row in run.results["samples"]:
        if row["server"] == tag and row["source"] == "L3":
            parts = cases.where_time_goes(row, events)
            if parts:
                row["parts_ms"] = parts
                table.setdefault((row["length"], row["wanted"]), []).append(parts)
    for (length, wanted), rows in sorted(table.items()):
        print(f"{tag} {length} {wanted}: where {len(rows)} hits spent their time (median ms)")
        for name in rows[0]:
            print(f"    {statistics.median(row[name] for row in rows):9.2f}  {name}", flush=True)


def phase_plain(run: Run, kind: str) -> None:
    """Measure recomputation, L1 and L2 without storage."""
    samples = cases.Samples(kind)
    with run.server(kind, kind, cases.DEVICE_TOKENS, run.options.l2) as server:
        cases.warm_up(server, run.lengths)
        for length in run.lengths:
            answers = cases.cold(server, samples, length)
            cases.hits_l1(server, samples, length, 8)
            if kind == "l2":
                cases.hits_l2(server, samples, length, _rounds(length), answers)
        _keep(run, samples, server)


def _rounds(length: int) -> int:
    return 2 if length <= 4096 else 4


def phase_ours(run: Run) -> None:
    """Measure recomputation with our tier attached, L1, L2, and our tier after a flush."""
    samples = cases.Samples("ours")
    references: dict[str, list[list[int]]] = {}
    stop_node(run)  # One that was there before has the prompts already.
    flushes: dict[int, list[float]] = {}
    with run.server("ours", "ours", cases.DEVICE_TOKENS, run.options.l2) as server:
        cases.warm_up(server, run.lengths)
        for length in run.lengths:
            answers = cases.cold(server, samples, length)
            cases.hits_l1(server, samples, length, 8)
            cases.hits_l2(server, samples, length, _rounds(length), answers)
            references[str(length)] = [list(answer.tokens) for answer in answers]
            flushes[length] = cases.hits_l3(
                server, samples, length, _rounds(length), references[str(length)]
            )
        decode = cases.decode_beside_hits(server, samples, min(run.lengths, key=_near_16k))
        _keep(run, samples, server, flush_s=flushes, decode_tokens_per_s=decode)
    (WORK / "references.json").write_text(json.dumps(references), encoding="utf-8")
    _split_hits(run, "ours")


def _near_16k(length: int) -> int:
    return abs(length - 16384)


def phase_restart(run: Run) -> None:
    """Measure our tier in an engine that starts anew, beside the node that was there before."""
    references = json.loads((WORK / "references.json").read_text(encoding="utf-8"))
    samples = cases.Samples("restart")
    with run.server("restart", "ours", cases.DEVICE_TOKENS, run.options.l2) as server:
        cases.warm_up(server, run.lengths)
        for length in run.lengths:
            known = references[str(length)]
            cases.hits_l3(server, samples, length, 1, known, "L3 first", flush_first=False)
        for length in run.lengths:
            cases.hits_l3(server, samples, length, 2, references[str(length)])
        _keep(run, samples, server)
    _split_hits(run, "restart")


def phase_file(run: Run) -> None:
    """Measure SGLang's file backend on tmpfs. It needs memory, so our node is stopped first."""
    stop_node(run)
    shutil.rmtree(FILE_FOLDER, ignore_errors=True)
    FILE_FOLDER.mkdir(parents=True)
    samples = cases.Samples("file")
    flushes: dict[int, list[float]] = {}
    try:
        with run.server("file", "file", cases.DEVICE_TOKENS, run.options.l2) as server:
            for length in run.lengths:
                answers = cases.cold(server, samples, length)
                tokens = [list(answer.tokens) for answer in answers]
                flushes[length] = cases.hits_l3(server, samples, length, 1, tokens)
            _keep(run, samples, server, flush_s=flushes)
    finally:
        shutil.rmtree(FILE_FOLDER, ignore_errors=True)
    _split_hits(run, "file")


def phase_turns(run: Run) -> None:
    """Run the conversations on each kind of server; the working set is four times L2."""
    run.results["turns"] = {}
    for kind in run.options.turns.split(","):
        if run.left_s() < 100:
            run.results["turns"][kind] = "left out: no time left"
            continue
        stop_node(run)
        shutil.rmtree(FILE_FOLDER, ignore_errors=True)
        FILE_FOLDER.mkdir(parents=True)
        with run.server(f"turns-{kind}", kind, 32768, 7) as server:
            cases.warm_up(server, (2048, 8192))
            rows = conversations(
                server, clients=20, rounds=5, turn_tokens=1900, answer_tokens=16, at_once=2
            )
        run.results["turns"][kind] = rows
        for row in rows:
            print(f"turns {kind:5}", {k: round(v, 3) for k, v in row.items()}, flush=True)
        run.save()
    shutil.rmtree(FILE_FOLDER, ignore_errors=True)
    stop_node(run)


def stop_node(run: Run) -> None:
    """Stop our node, if there is one."""
    command = [sys.executable, "-m", "mooncake_hicache", "stop"]
    subprocess.run(
        command, env=run.environment("ours"), cwd="/tmp", capture_output=True, check=False
    )


PHASES: dict[str, tuple[Callable[[Run], None], int]] = {
    "legs": (phase_legs, 85),
    "levers": (phase_levers, 70),
    "none": (lambda run: phase_plain(run, "none"), 90),
    "l2": (lambda run: phase_plain(run, "l2"), 100),
    "ours": (phase_ours, 140),
    "restart": (phase_restart, 110),
    "file": (phase_file, 120),
    "turns": (phase_turns, 100),
}


def main(argv: list[str]) -> int:
    """Install, then run the phases. Returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu")
    parser.add_argument("phases", nargs="+", choices=list(PHASES))
    parser.add_argument("--out", default="gpu-results", help="folder of the results")
    parser.add_argument(
        "--carry", default=str(REPOSITORY / ".carry"), help="what prepare collected"
    )
    parser.add_argument("--site", default="/tmp/site", help="folder to install into")
    parser.add_argument("--lengths", default="4096,16384,32768", help="tokens of the prompts")
    parser.add_argument("--pool", default="60GiB", help="size of our node's pool")
    parser.add_argument("--l2", type=int, default=18, help="--hicache-size, in GB")
    parser.add_argument("--touch", type=int, default=80, help="GiB of memory to touch first")
    parser.add_argument("--turns", default="ours,l2,none,file", help="servers of the phase turns")
    parser.add_argument("--time-limit", type=float, default=560, help="seconds for all of it")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--flag", action="append", default=[], help="one more flag of the servers")
    run = Run(parser.parse_args(argv))
    run.results["install_s"] = install(Path(run.options.carry), run.site)
    run.results["versions"] = versions(run)
    print("installed", run.results["install_s"], run.results["versions"], flush=True)
    failed = 0
    for name in run.options.phases:
        phase, seconds = PHASES[name]
        if run.left_s() < seconds:
            print(f"{name}: left out, {run.left_s():.0f} s are left", flush=True)
            run.results.setdefault("left_out", []).append(name)
            continue
        begun = time.monotonic()
        try:
            phase(run)
        except Exception as error:  # noqa: BLE001 - the other phases still count
            failed = 1
            print(f"{name} failed: {error}", flush=True)
            run.results.setdefault("failed", {})[name] = str(error)
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        run.save()
    run.pack_logs()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
