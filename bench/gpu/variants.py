"""Misses, hits and decoding under several settings, one server after the other on one machine.

A variant is `l2` or `ours`, with options of ours after a plus: `ours+COPY_THREADS=8`; what begins
with HICACHE_BENCH_ is for `events.py`, and with `--` for SGLang. Misses, of `--lengths`, are
measured three times: one after the other while memory of the pool is used for the first time, the
same once it is backed, and apart, each when the writes of the one before are done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.gpu import cases
from bench.gpu.run import WORK, Run, stop_node
from bench.gpu.server import Server, prompt

MISSES = {4096: 14, 16384: 4}
APART_S = {4096: 0.3, 16384: 0.8}
HIT_TOKENS = 32768
VARIANT_S = 100
"""More than a server takes from its start to its end."""


def phase_variants(run: Run) -> None:
    """Measure each variant that there is time for."""
    given, flags = list(run.options.env), list(run.options.flag)
    found: dict[str, Any] = run.results.setdefault("variants", {})
    for number, variant in enumerate(run.options.variants.split(","), 1):
        if run.left_s() < VARIANT_S:
            print(f"variant {variant}: left out, no time left", flush=True)
            continue
        kind, *options = variant.split("+")
        run.options.flag = flags + [option for option in options if option.startswith("--")]
        variables = [_variable(option) for option in options if not option.startswith("--")]
        run.options.env = given + variables
        stop_node(run)
        tag = f"variant-{number}-{kind}"
        samples = cases.Samples(tag)
        decode: list[cases.Decode] = []
        with run.server(tag, kind, cases.DEVICE_TOKENS, run.options.l2) as server:
            cases.warm_up(server, (*run.lengths, HIT_TOKENS))
            _misses(server, samples, run.lengths, kind == "ours")
            if kind == "ours":
                decode = _hits(server, samples)
        events = cases.read_events(WORK / f"{tag}.jsonl")
        cases.add_parts(samples.rows, events)
        rates = cases.decode_rates(decode, events) if decode else {}
        found[tag] = {
            "variant": variant,
            "decode_tokens_per_s": rates,
            "decode_step_s": cases.decode_steps(samples.rows, events),
        }
        run.results["samples"] += samples.rows
        run.results["servers"][tag]["start_s"] = round(server.start_s, 1)
        print(f"{tag} is {variant}", {name: round(rate, 2) for name, rate in rates.items()})
        print("\n".join(samples.summary()), flush=True)
        run.save()
    run.options.env, run.options.flag = given, flags
    stop_node(run)


def _variable(option: str) -> str:
    return option if option.startswith("HICACHE_BENCH_") else f"MOONCAKE_HICACHE_{option}"


def _misses(
    server: Server, samples: cases.Samples, lengths: Sequence[int], has_storage: bool
) -> None:
    server.flush()
    for name in ("cold", "cold, backed", "cold, apart"):
        for length in lengths:
            for number in range(MISSES.get(length, 0)):
                answer = server.ask(prompt((name, length, number), length), cases.NEW_TOKENS)
                samples.add(length, name, answer, None)
                if name == "cold, apart":
                    time.sleep(APART_S[length])
            server.flush()
        if has_storage:
            server.clear_storage()


def _hits(server: Server, samples: cases.Samples) -> list[cases.Decode]:
    known = [list(server.ask(ids, cases.NEW_TOKENS).tokens) for ids in cases.prompts_of(HIT_TOKENS)]
    cases.hits_l3(server, samples, HIT_TOKENS, 2, known)
    return cases.decode_beside_hits(server, samples, HIT_TOKENS, rounds=3)
