"""Build, start servers and measure, on the GPU machine: `python3 -m bench.gpu PHASE… --out FOLDER`.

Phases, in the order given:

    legs       bandwidth of each leg beside the machine's limits
    levers     what could make hits cheaper: huge pages, populated memory, copies by the GPU
    none       SGLang without HiCache
    l2         HiCache without storage
    ours       HiCache with our tier
    linker     our tier without host pools (SGLang 0.5.23, see prepare)
    restart    our tier after a restart of the engine (run `ours` before, on the same machine)
    ssd        our tier with pages on SSD only, node and engine started anew (run `ours` before)
    disk       our store's pages on SSD beside fio
    file       HiCache with SGLang's file backend, on tmpfs
    turns      conversations with growing context, on all of the above
    variants   misses, hits and decoding under several settings (`--variants`)

Writes FOLDER/gpu.json after each phase, and logs. A phase is left out when less time is left than
it may take (`--time-limit`), and the result says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import cases, ssd
from bench.gpu.disk import find_fio
from bench.gpu.install import REPOSITORY, environment, install
from bench.gpu.multiturn import TURNS, conversations
from bench.gpu.run import FILE_FOLDER, WORK, Run, flush_node, stop_node, versions
from bench.gpu.server import Server
from bench.gpu.variants import VARIANT_S, phase_variants


def phase_legs(run: Run) -> None:
    """Measure the legs, in a process of their own."""
    _in_own_process(run, "legs", str(run.options.touch))


def phase_levers(run: Run) -> None:
    """Measure what could make a hit cheaper, in a process of its own."""
    _in_own_process(run, "levers")


def phase_disk(run: Run) -> None:
    """Measure what our tier makes of the disk, in a process of its own."""
    if run.ssd is None:
        raise RuntimeError("no disk here takes O_DIRECT")
    fio = find_fio(Path(run.options.carry))
    _in_own_process(run, "ssd_legs", str(run.ssd.parent), *([fio] if fio else []))


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


def _split(run: Run, tag: str) -> None:
    """Say where the time of misses and of hits from storage went."""
    rows = [row for row in run.results["samples"] if row["server"] == tag]
    cases.add_parts(rows, cases.read_events(WORK / f"{tag}.jsonl"))
    table: dict[tuple[int, str], list[dict[str, float]]] = {}
    for row in rows:
        if "parts_ms" in row:
            table.setdefault((row["length"], row["wanted"]), []).append(row["parts_ms"])
    for (length, wanted), parts in sorted(table.items()):
        print(f"{tag} {length} {wanted}: where the time of {len(parts)} went (median ms)")
        for name in parts[0]:
            print(f"    {statistics.median(row[name] for row in parts):9.2f}  {name}", flush=True)


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
    _split(run, kind)


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
        (WORK / "references.json").write_text(json.dumps(references), encoding="utf-8")
        decode = cases.decode_beside_hits(server, samples, max(run.lengths), rounds=4)
        _keep(run, samples, server, flush_s=flushes)
    _split(run, "ours")
    events = cases.read_events(WORK / "ours.jsonl")
    rates = cases.decode_rates(decode, events)
    about = run.results["servers"]["ours"]
    about["decode_tokens_per_s"] = rates
    about["decode_step_s"] = cases.decode_steps(samples.rows, events)
    print("decode, tokens/s", {name: round(rate, 2) for name, rate in rates.items()}, flush=True)


def phase_linker(run: Run) -> None:
    """Measure our tier without host pools, and again after the engine was started anew."""
    names = {"L2": "L3"}  # Whatever is not on the GPU SGLang counts as the host's.
    references: dict[int, list[list[int]]] = {}
    stop_node(run)
    samples = cases.Samples("linker", names)
    with run.server("linker", "linker", cases.DEVICE_TOKENS, 0) as server:
        cases.warm_up(server, run.lengths)
        for length in run.lengths:
            answers = cases.cold(server, samples, length)
            cases.hits_l1(server, samples, length, 8)
            references[length] = [list(answer.tokens) for answer in answers]
            cases.hits_l3(server, samples, length, _rounds(length), references[length])
        _keep(run, samples, server)
    again = cases.Samples("linker-restart", names)
    with run.server("linker-restart", "linker", cases.DEVICE_TOKENS, 0) as server:
        cases.warm_up(server, (ssd.WARM_LENGTH,))
        for length in run.lengths:
            known = references[length]
            cases.hits_l3(server, again, length, 1, known, "L3 first", flush_first=False)
            cases.hits_l3(server, again, length, 1, known)
        _keep(run, again, server)


def phase_ssd(run: Run) -> None:
    """Measure our tier with all pages on SSD."""
    if run.ssd is None:
        raise RuntimeError("no disk here takes O_DIRECT")
    references = json.loads((WORK / "references.json").read_text(encoding="utf-8"))
    flushed = flush_node(run)
    print("node stopped and flushed", flushed, flush=True)
    found: dict[str, Any] = {"flush": flushed, "os_cache_dropped": ssd.drop_os_cache()}
    run.results["ssd"] = found
    samples = cases.Samples("ssd")
    with run.server("ssd", "ours", cases.DEVICE_TOKENS, run.options.l2) as server:
        found.update(ssd.measure(run, server, samples, references))
        _keep(run, samples, server)
    _split(run, "ssd")
    for what, value in found.items():
        print("ssd", what, _rounded(value), flush=True)


def phase_restart(run: Run) -> None:
    """Measure our tier in an engine that starts anew, beside the node that was there before."""
    references = json.loads((WORK / "references.json").read_text(encoding="utf-8"))
    samples = cases.Samples("restart")
    with run.server("restart", "ours", cases.DEVICE_TOKENS, run.options.l2) as server:
        cases.warm_up(server, (ssd.WARM_LENGTH,))
        for length in run.lengths:
            known = references[str(length)]
            cases.hits_l3(server, samples, length, 1, known, "L3 first", flush_first=False)
        for length in run.lengths:
            cases.hits_l3(server, samples, length, 2, references[str(length)])
        _keep(run, samples, server)
    _split(run, "restart")


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
    _split(run, "file")


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
        samples = cases.Samples(f"turns-{kind}")
        with run.server(samples.tag, kind, TURNS_DEVICE_TOKENS, run.options.turns_l2) as server:
            cases.warm_up(server, (2048, 8192))
            if kind != "file":  # It would still be writing them when the conversations begin.
                for length in MISS_LENGTHS:
                    cases.cold(server, samples, length)
            server.flush()
            rows = conversations(server, TURNS, until_s=time.monotonic() + TURNS_LIMIT_S)
            _keep(run, samples, server)
        _split(run, samples.tag)
        run.results["turns"][kind] = rows
        for row in rows:
            print(f"turns {kind:5}", {k: round(v, 3) for k, v in row.items()}, flush=True)
        run.save()
    shutil.rmtree(FILE_FOLDER, ignore_errors=True)
    stop_node(run)


# Much less than L2 holds: what is fetched needs room there beside what is on the GPU.
TURNS_DEVICE_TOKENS = 26624
TURNS_LIMIT_S = 90
MISS_LENGTHS = (4096, 16384)

PHASES: dict[str, tuple[Callable[[Run], None], int]] = {
    "legs": (phase_legs, 85),
    "levers": (phase_levers, 70),
    "none": (lambda run: phase_plain(run, "none"), 90),
    "l2": (lambda run: phase_plain(run, "l2"), 100),
    "ours": (phase_ours, 140),
    "linker": (phase_linker, 200),
    "restart": (phase_restart, 110),
    "file": (phase_file, 120),
    "ssd": (phase_ssd, 150),
    "disk": (phase_disk, 60),
    "turns": (phase_turns, 100),
    "variants": (phase_variants, VARIANT_S),
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
    parser.add_argument("--turns-l2", type=int, default=8, help="the same, in the phase turns")
    parser.add_argument("--ssd", default="auto", help="folder on a disk for pages, auto or off")
    parser.add_argument("--commit", default="", help="what is measured, kept with the results")
    parser.add_argument("--turns", default="ours,l2,none,file", help="servers of the phase turns")
    parser.add_argument(
        "--variants", default="l2,ours", help="servers of the phase variants: ours+COPY_THREADS=8"
    )
    parser.add_argument("--time-limit", type=float, default=560, help="seconds for all of it")
    parser.add_argument("--keep-node", action="store_true", help="for `ssd` in a later call")
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
    if not run.options.keep_node:
        stop_node(run)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
