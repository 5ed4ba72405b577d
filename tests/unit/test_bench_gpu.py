"""What the benchmark on a GPU makes of what it measured, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import report
from bench.gpu.cases import Decode, decode_rates, progress
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
