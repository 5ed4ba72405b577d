"""What the benchmark on a GPU makes of what it measured, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import report
from bench.gpu.cases import Decode, add_parts, decode_rates, decode_steps, progress
from bench.gpu.disk import best_place, plain_read
from bench.gpu.holds import holds_table
from bench.gpu.server import KV_SIZE_PER_TOKEN
from bench.gpu.ssd import difference


def sample(server: str, wanted: str, length: int, ttft_s: float) -> dict[str, Any]:
    place = {"L2": "host", "L3": "storage"}.get(wanted[:2])
    return {
        "server": server,
        "length": length,
        "wanted": wanted,
        "source": wanted[:2] if place else "cold",
        "sent_s": 1.0,
        "ttft_s": ttft_s,
        "cached": {place: length} if place else {},
        "tokens": [1],
        "same": True if place else None,
    }


def result(folder: Path, name: str, *samples: dict[str, Any], **more: Any) -> Path:
    path = folder / name
    whole = {
        "command": f"python3 -m bench.gpu ours --out {folder} --pool 1GiB",
        "machine": {"gpu": "one"},
        "servers": {},
        "samples": samples,
        **more,
    }
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def test_a_ratio_never_mixes_two_runs(tmp_path: Path) -> None:
    first = result(
        tmp_path, "1.json", sample("none", "cold", 4096, 1.0), sample("ours", "L3", 4096, 0.9)
    )
    second = result(tmp_path, "2.json", sample("ours", "L3", 4096, 0.1))
    merged = report.merge([first, second])
    figures = report.grouped(merged)
    line = next(line for line in report.ttft_table(figures) if "after a flush" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == "100"  # The last run counts,
    assert cells[6] == ""  # and has nothing to be compared with.
    assert cells[-1] == "2"
    assert not any("÷ recompute" in line for line in holds_table(figures, merged))


def test_no_folder_of_the_machine_is_in_the_report(tmp_path: Path) -> None:
    place = {"path": str(tmp_path), "kind": "ext4", "source": "/dev/x", "free": 1}
    one = result(
        tmp_path,
        "1.json",
        sample("ours", "L3", 4096, 0.1),
        ssd_folder=str(tmp_path / "pages"),
        disk={"places": [place], "findmnt": str(tmp_path)},
        ssd_legs={"facts": {"findmnt": str(tmp_path)}},
    )
    assert report.main([str(tmp_path / "merged"), str(one)]) == 0
    for name in ("merged.json", "merged.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert "python3 -m bench.gpu ours --pool 1GiB" in text
    merged = json.loads((tmp_path / "merged.json").read_text(encoding="utf-8"))
    assert merged["runs"][0]["disk"]["kind"] == "ext4"
    assert [row["ttft_s"] for row in merged["samples"]] == [0.1]


@pytest.mark.parametrize(("ttft_s", "verdict"), [(0.9, "yes"), (1.4, "**no**")])
def test_a_hit_from_ssd_is_held_against_the_disk_of_its_run(
    tmp_path: Path, ttft_s: float, verdict: str
) -> None:
    rate = 4096 * KV_SIZE_PER_TOKEN / 0.9 / 1.0  # The bytes take one second at 0.9 of it.
    one = result(
        tmp_path,
        "1.json",
        sample("ours", "L2", 4096, 0.1),
        sample("ssd", "L3 SSD", 4096, ttft_s),
        ssd={"limit is by": "fio", "limit: read": {"slow": rate / 2, "best": rate}},
    )
    merged = report.merge([one])
    lines = [line for line in holds_table(report.grouped(merged), merged) if "from SSD" in line]
    assert any("≤ 1100 ms" in line and f"| {verdict} |" in line for line in lines)


def test_progress_counts_parts_of_tokens() -> None:
    times = [1.0, 2.0, 4.0]
    assert [progress(times, moment) for moment in (0.5, 1.0, 1.5, 3.0, 4.0, 9.0)] == [
        *(0.0, 1.0, 1.5, 2.5, 3.0, 3.0)
    ]


def test_the_decode_rate_while_hits_are_read_leaves_the_rest_out() -> None:
    # 100 tokens per second, but for 0.2 s of a hit's own step of the model; 50 while it is read.
    times = [number / 100 for number in range(201)]  # Alone, until 2.0.
    times += [2.0 + number / 50 for number in range(1, 21)]  # Read, until 2.4.
    times += [2.6 + number / 100 for number in range(41)]
    spans = {"alone": (0.5, 2.0), "L3": (2.0, 2.6)}
    events = [["A.prefetch_from_storage", 2.0, 2.001, 1], ["B._page_transfer", 2.1, 2.4, 1]]
    rates = decode_rates([Decode(times, spans)], events)
    assert rates["alone"] == pytest.approx(100)
    assert rates["L3, while it is read"] == pytest.approx(50)
    assert rates["seconds of reading"] == pytest.approx(0.4)
    assert rates["L3"] < 40


def test_decoding_beside_a_hit_is_held_against_the_moments_after_it() -> None:
    busy = {"wanted": "L3 busy", "sent_s": 9.95, "ttft_s": 0.2}
    others = [{"wanted": "L2 busy", "sent_s": 12.0, "ttft_s": 0.2}]
    moments = [9.0, 9.1, 10.0, 10.03, 10.06, 10.09, 10.3, 10.32, 10.34, 12.0, 12.5]
    events = [["S.run_batch", moment, moment + 0.01, 1] for moment in moments]
    events.append(["C._page_transfer", 10.0, 10.1, 1])
    steps = decode_steps([busy, *others], sorted(events, key=lambda event: event[1]))
    assert steps["while a hit is read"] == pytest.approx(0.03)
    assert steps["between hits"] == pytest.approx(0.02)


def test_the_parts_of_a_miss_are_the_whole_of_it() -> None:
    miss = {**sample("ours", "cold", 4096, 0.5), "sent_s": 1.0}
    events = [
        ["N.put_from", 0.5, 1.2, 64],  # Of the prompt before it.
        ["S.handle_generate_request", 1.01, 1.02, 0],
        ["C._storage_hit_query", 1.02, 1.03, 0],
        ["S.run_batch", 1.05, 1.15, 1],
        ["S.process_batch_result", 1.16, 1.45, 1],
        ["S.process_batch_result", 1.48, 1.6, 1],  # Of the second token.
    ]
    add_parts([miss], events)
    parts = miss["parts_ms"]
    beside = {"puts beside it": 200, "look-up thread": 10}
    assert {name: parts.pop(name) for name in beside} == pytest.approx(beside)
    assert parts["waits for its look-up"] == pytest.approx(30)
    assert parts["forward"] == pytest.approx(300)
    assert sum(parts.values()) == pytest.approx(500)


def test_misses_of_every_kind_stand_beside_their_setting(tmp_path: Path) -> None:
    steps = {"between hits": 0.02, "while a hit is read": 0.025}
    one = result(
        tmp_path,
        "1.json",
        sample("variant-1-ours", "cold", 4096, 0.1),
        sample("variant-1-ours", "cold, backed", 4096, 0.2),
        sample("variant-1-ours", "cold, apart", 4096, 0.3),
        sample("variant-1-ours", "L3 busy", 32768, 0.4),
        {**sample("variant-1-ours", "cold, apart", 4096, 9.0), "cached": {"storage": 4096}},
        variants={"variant-1-ours": {"variant": "ours+X=1", "decode_step_s": steps}},
    )
    merged = report.merge([one])
    line = report.variants_table(report.grouped(merged), merged)[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        *("ours+X=1", "100.0", "200.0", "300.0"),
        *("", "", "", "", "400.0", "0.80 (1)", "1"),
    ]


def test_a_later_run_adds_to_an_earlier_report(tmp_path: Path) -> None:
    def turns(*kinds: str) -> dict[str, Any]:
        shares = dict.fromkeys(("device_share", "host_share", "storage_share"), 0.0)
        times = {"ttft_p50_s": 1.0, "ttft_p99_s": 1.0, "input_tokens_per_s": 1.0}
        return {kind: [{"round": 1, **times, **shares}] for kind in kinds}

    samples = [sample("ours", "L3", 4096, 0.1)]
    first = result(tmp_path, "1.json", *samples, turns=turns("l2", "ours", "file"))
    second = result(tmp_path, "2.json", *samples, turns=turns("l2", "ours"))
    assert report.main([str(tmp_path / "earlier"), str(first)]) == 0
    merged = report.merge([tmp_path / "earlier.json", second])
    assert merged == report.merge([first, second])
    assert [row["run"] for row in merged["samples"]] == [1, 2]
    lines = [line for line in holds_table({}, merged) if "conversations" in line]
    # The last run of both: nothing that was measured is lost by measuring something else.
    assert ["÷ l2" in line and line.endswith("| 2 |") for line in lines] == [True, False]
    assert ["÷ file" in line and line.endswith("| 1 |") for line in lines] == [False, True]


def test_reads_under_another_setting_stand_apart(tmp_path: Path) -> None:
    usual = [sample("ours", "L3", 4096, 0.1), sample("restart", "L3 first", 4096, 0.2)]
    first = result(tmp_path, "1.json", *usual)
    slow = [sample("ours", "L3", 4096, 0.4), sample("restart", "L3 first", 4096, 0.44)]
    second = result(tmp_path, "2.json", *slow, sample("ours", "cold", 4096, 1.0))
    merged = report.merge([first, f"few threads={second}"])
    figures = report.grouped(merged)
    lines = [line for line in report.ttft_table(figures) if "after a flush" in line]
    assert [" | 100 | " in line and line.endswith("| 1 |") for line in lines] == [True, False]
    assert [" few threads: " in line and " | 400 | " in line for line in lines] == [False, True]
    assert (2, "ours", "cold", 4096) in figures  # Only reads are made under the setting.
    restarts = [line for line in holds_table(figures, merged) if "restart" in line]
    assert len(restarts) == 1  # The last run that measured both.
    assert "few threads" in restarts[0]
    assert "| 1.10 |" in restarts[0]


def test_decoding_with_cuda_graphs_is_held_against_the_same_bound(tmp_path: Path) -> None:
    rates = {"alone": 100.0, "L3": 80.0, "L2": 75.0, "L3, while it is read": 98.0}
    about = {"variant": "ours+--cuda-graph-max-bs-decode=4", "decode_tokens_per_s": rates}
    merged = report.merge([result(tmp_path, "1.json", variants={"variant-1-ours": about})])
    lines = [line for line in holds_table({}, merged) if "CUDA graphs" in line]
    verdicts = [[cell.strip() for cell in line.strip("|").split("|")][1:4] for line in lines]
    assert verdicts == [
        ["0.98", "≥ 0.97", "yes"],
        ["0.80", "≥ 0.97", "**no**"],
        ["0.75", "≥ 0.97", "**no**"],
    ]


def test_the_best_place_is_a_disk_and_not_memory() -> None:
    places = [
        {"path": "/m", "kind": "tmpfs", "free": 100, "direct": True},
        {"path": "/l", "kind": "overlay", "free": 50, "direct": True},
        {"path": "/n", "kind": "ext4", "free": 90, "direct": False},
        {"path": "/d", "kind": "ext4", "free": 10, "direct": True},
    ]
    assert best_place(places) == Path("/d")
    assert best_place(places[:1]) is None


def test_plain_threads_read_every_byte_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(8 << 20))
    try:
        assert plain_read(file, 8 << 20, 3) > 0
    except OSError:
        pytest.skip("this folder does not take O_DIRECT")


def test_the_difference_names_what_grew() -> None:
    assert difference({"a": 1, "b": 2, "c": "x"}, {"a": 4, "b": 2, "d": 3}) == {"a": 3, "d": 3}
