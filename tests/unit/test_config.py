"""Options: where they come from, what they accept, and how a mistake is told."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from mooncake_hicache import config
from mooncake_hicache.config import NodeOptions, StoreOptions, environment_name
from mooncake_hicache.errors import InvalidArgumentError, NoSpaceError
from mooncake_hicache.machine import MemoryOnOffer
from mooncake_hicache.options_types import ssd_places

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(config.ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)


def test_there_are_few_options_and_each_has_a_reason() -> None:
    fields = StoreOptions.model_fields
    assert len(fields) < 48
    for name, field in fields.items():
        assert field.description, f"{name} has no description"
        assert len(field.description) > 30, f"{name} has no reason"


def test_every_option_names_its_unit() -> None:
    """A number is a duration with its unit in the name, a share, or counts what its name says."""
    counted = {"numa_node", "clients_max", "http_port", "copy_threads"}
    for name, field in StoreOptions.model_fields.items():
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert name.endswith or name in counted, name


def test_sources_win_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hicache.toml"
    file.write_text('pool_size = "1GiB"\nclients_max = 7\nlog_level = "debug"\nverify = false\n')
    monkeypatch.setenv("MOONCAKE_HICACHE_CONFIG", str(file))
    monkeypatch.setenv("MOONCAKE_HICACHE_POOL_SIZE", "2GiB")
    monkeypatch.setenv("MOONCAKE_HICACHE_CLIENTS_MAX", "8")
    options = StoreOptions(pool_size="3GiB")
    assert (options.pool_size, options.source_of("pool_size")) == ("3GiB", "argument")
    assert options.clients_max == 8
    assert options.source_of("clients_max") == "environment MOONCAKE_HICACHE_CLIENTS_MAX"
    assert (options.log_level, options.source_of("log_level")) == ("debug", f"file {file}")
    assert options.verify is False
    assert (options.numa_node, options.source_of("numa_node")) == (-1, "default")


def test_a_file_may_be_json_and_named_by_an_argument(tmp_path: Path) -> None:
    file = tmp_path / "hicache.json"
    file.write_text(json.dumps({"call_timeout_ms": "250ms", "pool_size": 1 << 30}))
    options = StoreOptions(config=file)
    assert options.call_timeout_ms == 250
    assert options.pool_size_bytes(MemoryOnOffer(4 << 30, "test")) == 1 << 30


def test_a_node_reads_the_file_that_clients_read(tmp_path: Path) -> None:
    file = tmp_path / "hicache.toml"
    file.write_text('copy_threads = 3\npool_size = "1GiB"\n')
    assert NodeOptions(config=str(file)).pool_size == "1GiB"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("poolsize", "pool_size"), ("idle_timeout", "idle_timeout_s"), ("socket_path", "socket")],
)
def test_an_unknown_option_is_named_with_the_nearest_one(
    wrong: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"unknown option {wrong} .*{near}\?"):
        StoreOptions(**{wrong: "1"})
    file = tmp_path / "hicache.toml"
    file.write_text(f'{wrong} = "1"\n')
    with pytest.raises(InvalidArgumentError, match=rf"{wrong} in the file {file}.*{near}\?"):
        StoreOptions(config=str(file))
    monkeypatch.setenv(environment_name(wrong), "1")
    with pytest.raises(
        InvalidArgumentError,
        match=rf"{environment_name(wrong)} in the environment.*{environment_name(near)}\?",
    ):
        StoreOptions()


def test_the_nearest_name_is_found_without_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_ZEBRA", "1")
    with pytest.raises(InvalidArgumentError, match="ZEBRA in the environment: .*lists all"):
        StoreOptions()
    monkeypatch.delenv("MOONCAKE_HICACHE_ZEBRA")
    monkeypatch.setenv("MOONCAKE_HICACHE_POOL", "1GB")
    with pytest.raises(InvalidArgumentError, match=r"mean MOONCAKE_HICACHE_POOL_SIZE\?"):
        StoreOptions()


def test_only_the_wrong_options_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hicache.toml"
    file.write_text('clients_max = 7\nlog_level = "loud"\nunheard_of = 1\n')
    monkeypatch.setenv("MOONCAKE_HICACHE_CONFIG", str(file))
    monkeypatch.setenv("MOONCAKE_HICACHE_POOL_SIZE", "lots")
    monkeypatch.setenv("MOONCAKE_HICACHE_POOLSIZE", "1GB")
    monkeypatch.setenv("MOONCAKE_HICACHE_AUTOSTART", "0")
    monkeypatch.setenv("MOONCAKE_HICACHE_START_TIMEOUT_MS", "2s")
    options = config.options_without_mistakes({"runtime_dir": "/tmp/mine", "numa_node": "x"})
    assert options.runtime_dir == "/tmp/mine"
    assert (options.clients_max, options.source_of("clients_max")) == (7, f"file {file}")
    assert (options.autostart, options.start_timeout_ms) == (False, 2000)
    assert (options.pool_size, options.source_of("pool_size")) == ("25%", "default")
    assert (options.numa_node, options.log_level) == (-1, "info")
    assert config.options_without_mistakes({"http_port": "70000"}).http_port == 0
    monkeypatch.setenv("MOONCAKE_HICACHE_CONFIG", "/nonexistent.toml")
    assert config.options_without_mistakes({}).clients_max == 256


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("pool_size", "64 apples", "not a size"),
        ("pool_size", "64", "write a unit"),
        ("pool_size", "100%", "90%"),
        ("pool_size", "0%", "0%"),
        ("call_timeout_ms", "1 week", "500ms"),
        ("call_timeout_ms", "2min", "less than or equal to 60000"),
        ("idle_timeout_s", "-1", "plain number of seconds"),
        ("copy_threads", "many", "integer"),
        ("copy_threads", "-1", "greater than or equal to 0"),
        ("verify", "perhaps", "boolean"),
        ("huge_pages", "yes", "'auto', 'never' or 'always'"),
        ("eviction_policy", "random", "'adaptive', 'lru' or 's3fifo'"),
        ("lookup_lease_share", "2", "less than or equal to 0.9"),
        ("http_port", "65536", "65535"),
        ("sglang", "maybe", "'on', 'off' or 'required'"),
        ("ssd", "yes", '"off"'),
        ("ssd", "relative/kv", "/nvme0/kv=2TB"),
        ("ssd", "/kv=lots", "'lots' is not a size"),
        ("ssd", "/kv=1MiB", "64 MiB"),
        ("ssd", "/kv,/kv/", "named twice"),
        ("ssd_size", "10MiB", "64 MiB"),
        ("ssd_size", "120%", "100% of the free space"),
        ("ssd_free_min", "95%", "90% of the file system"),
        ("ssd_free_min", "some", "share of the file system"),
        ("ssd_write", "back", "'evict' or 'through'"),
        ("ssd_write_budget", "5%", "not a size"),
        ("ssd_region_size", "100kB", "1 MiB and 4 GiB"),
        ("ssd_region_size", "1000001KiB", "multiple of 64 KiB"),
        ("ssd_region_size", "8GiB", "256MiB"),
        ("ssd_io", "uring", "'auto', 'io_uring' or 'threads'"),
        ("ssd_staging", "perhaps", "boolean"),
        ("flush_timeout_s", "soon", "plain number of seconds"),
    ],
)
def test_a_wrong_value_is_told_with_its_source(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"option {name} \(argument\)") as caught:
        StoreOptions(**{name: value})
    assert told in str(caught.value)
    monkeypatch.setenv(environment_name(name), value)
    source = re.escape(f"option {name} (environment {environment_name(name)})")
    with pytest.raises(InvalidArgumentError, match=source):
        StoreOptions()


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match=r"pool_size.*numa_node"):
        StoreOptions(pool_size="x", numa_node=-5)


@pytest.mark.parametrize("text", ["pool_size = ", "[]", "\xff"])
def test_a_file_that_is_no_toml_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "hicache.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match=str(file)):
        StoreOptions(config=str(file))


def test_a_json_file_must_hold_a_table(tmp_path: Path) -> None:
    file = tmp_path / "hicache.json"
    file.write_text("[1]")
    with pytest.raises(InvalidArgumentError, match="no table"):
        StoreOptions(config=str(file))


def test_a_missing_file_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"missing.toml \(MOONCAKE_HICACHE_CONFIG\)"):
        StoreOptions(config=str(tmp_path / "missing.toml"))


def test_units_and_empty_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_LOG_FILE", "")
    monkeypatch.setenv("MOONCAKE_HICACHE_START_TIMEOUT_MS", "2s")
    monkeypatch.setenv("MOONCAKE_HICACHE_SGLANG", "Off")
    options = StoreOptions(idle_timeout_s="500ms")
    assert options.log_file == ""
    assert options.start_timeout_ms == 2000
    assert options.idle_timeout_s == 1, "half a second must not become 0, which means never"
    assert options.sglang == "off"


def test_quotas_are_read_from_text_tables_and_files(tmp_path: Path) -> None:
    """However they are written they are kept as one text, and come to bytes of the pool."""
    expected = "acme=200GB,a=b=10%,*=5%"
    assert NodeOptions(quotas=" acme = 200GB, a=b=10%,*=5%").quotas == expected
    assert NodeOptions(quotas={"acme": "200GB", "a=b": "10%", "*": "5%"}).quotas == expected
    file = tmp_path / "hicache.toml"
    file.write_text('[quotas]\nacme = "200GB"\n"a=b" = "10%"\n"*" = "5%"\n')
    options = NodeOptions(config=str(file))
    assert options.quotas == expected
    assert options.quota_bytes(1000 << 20) == {
        "acme": 200_000_000_000,
        "a=b": 100 << 20,
        "*": 50 << 20,
    }
    assert NodeOptions().quota_bytes(1 << 30) == {}


@pytest.mark.parametrize(
    ("quotas", "said"),
    [
        ("acme", "gives no tenant a size"),
        ("=5GB", "is no tenant"),
        ("acme=5GB,acme=6GB", "named twice"),
        ("acme=0", "more than 0 bytes"),
        ("acme=101%", "of the pool"),
        ("acme=many", "many"),
        ({"a,b": "5GB"}, "comma"),
        ({"a\n": "5GB"}, "control characters"),
        ({"a" * 257: "5GB"}, "256 bytes"),
        ({f"t{i}": 1 for i in range(1025)}, "at most 1024"),
        (5, "gives no tenant a size"),
    ],
)
def test_quotas_that_make_no_sense_are_named(quotas: object, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        NodeOptions(quotas=quotas)


def test_directories_on_ssd_are_read_from_text_lists_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is written it is kept as one text, which is also what a started node is given."""
    expected = f"/nvme0/kv=2TB,{Path.home()}/kv,/nvme2/a=b=50%"
    text = "/nvme0/kv = 2TB, ~/kv ,/nvme2/a=b=50%"
    assert NodeOptions(ssd=text).ssd == expected
    assert NodeOptions(ssd=["/nvme0/kv=2TB", "~/kv", "/nvme2/a=b=50%"]).ssd == expected
    assert NodeOptions(ssd=expected).ssd == expected
    file = tmp_path / "hicache.toml"
    file.write_text('ssd = ["/nvme0/kv=2TB", "~/kv", "/nvme2/a=b=50%"]\nssd_write_budget = "0"\n')
    options = NodeOptions(config=str(file))
    assert (options.ssd, options.ssd_write_budget_bytes()) == (expected, 0)
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD", text)
    assert NodeOptions().ssd == expected
    assert ssd_places(expected) == [
        ("/nvme0/kv", "2TB"),
        (f"{Path.home()}/kv", ""),
        ("/nvme2/a=b", "50%"),
    ]
    assert NodeOptions(ssd=" OFF ").ssd == "off"
    assert ssd_places("off") == ssd_places("auto") == []
    monkeypatch.chdir(tmp_path)
    assert NodeOptions(ssd="./kv").ssd == str(tmp_path / "kv")


@pytest.mark.parametrize("value", [False, 5, [], [5], "", ",", ["/a,b"]])
def test_what_names_no_directory_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="option ssd "):
        NodeOptions(ssd=value)


def test_sizes_on_ssd_are_kept_as_written_and_known_in_bytes() -> None:
    options = NodeOptions(ssd_region_size="64MiB", ssd_write_budget="500GB", ssd_size="AUTO")
    assert options.ssd_region_size_bytes() == 64 << 20
    assert options.ssd_write_budget_bytes() == 500 * 10**9
    assert options.ssd_size == "auto"
    defaults = NodeOptions()
    assert defaults.ssd_region_size_bytes() == 256 << 20
    assert defaults.ssd_write_budget_bytes() == 2 * 10**12


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert StoreOptions(runtime_dir="here").runtime_dir == str(tmp_path / "here")
    assert StoreOptions(socket="@abstract").socket == "@abstract"


def test_pool_size_is_a_share_of_what_is_on_offer() -> None:
    offer = MemoryOnOffer(100 << 30, "test")
    assert NodeOptions(pool_size="25%").pool_size_bytes(offer) == 25 << 30
    assert NodeOptions(pool_size="64GB").pool_size_bytes(offer) == 64 * 10**9
    assert NodeOptions().pool_size_bytes(MemoryOnOffer(0, "nothing")) == 1 << 20
    assert NodeOptions().pool_size_bytes() > 0


def test_a_pool_larger_than_the_memory_is_refused_with_the_remedy() -> None:
    with pytest.raises(NoSpaceError) as caught:
        NodeOptions(pool_size="64GiB").pool_size_bytes(MemoryOnOffer(1 << 30, "memory.max"))
    for part in ("64GiB", "1 GiB", "memory.max", "MOONCAKE_HICACHE_POOL_SIZE", "25%"):
        assert part in str(caught.value)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        StoreOptions().clients_max = 3


def test_replaced_keeps_arguments_and_checks_the_new_ones() -> None:
    options = StoreOptions(pool_size="1GiB", verify=False).replaced(verify=True)
    assert (options.pool_size, options.verify) == ("1GiB", True)
    with pytest.raises(InvalidArgumentError, match="pool_size"):
        options.replaced(pool_sizes="1")


def test_copy_threads_are_resolved_for_this_machine() -> None:
    assert StoreOptions(copy_threads=5).copy_thread_count() == 5
    assert StoreOptions(copy_threads=5).put_copy_thread_count() == 5
    assert StoreOptions(copy_threads=5, put_copy_threads=2).put_copy_thread_count() == 2
    assert StoreOptions(copy_threads=5, put_copy_threads=9).put_copy_thread_count() == 5
    assert 1 <= StoreOptions().copy_thread_count() <= 16


def test_the_ready_file_is_what_the_options_say() -> None:
    text = (ROOT / "configs/single_node.toml").read_text()
    assert text == config.options_file_text(), "run `mooncake-hicache config --template`"


def test_the_example_with_ssds_is_what_it_says() -> None:
    options = StoreOptions(config=str(ROOT / "configs/single_node_ssd.toml"))
    assert ssd_places(options.ssd) == [
        ("/nvme0/mooncake-hicache", "2TB"),
        ("/nvme1/mooncake-hicache", "2TB"),
    ]
    assert options.ssd_write_budget_bytes() == 7_600 * 10**9
    assert (options.flush_timeout_s, options.idle_timeout_s) == (120, 0)


def test_the_ready_file_changes_nothing() -> None:
    options = StoreOptions(config=str(ROOT / "configs/single_node.toml"))
    defaults = StoreOptions()
    for name in StoreOptions.model_fields:
        if name != "config":
            assert getattr(options, name) == getattr(defaults, name), name
            assert options.source_of(name).startswith("file "), name


def test_what_a_pool_may_grow_to_is_never_less_than_its_size() -> None:
    mib = 1 << 20
    offer = MemoryOnOffer(1000 * mib, "a test")
    assert NodeOptions(pool_size="64MiB").pool_size_max_bytes(offer) == 64 * mib
    grown = NodeOptions(pool_size="64MiB", pool_size_max="50%")
    assert grown.pool_size_max_bytes(offer) == 500 * mib
    less = NodeOptions(pool_size="64MiB", pool_size_max="1MiB")
    assert less.pool_size_max_bytes(offer) == 64 * mib
    # More than there is may be named: one file of options serves machines of several sizes.
    assert NodeOptions(pool_size_max="1TB").pool_size_max_bytes(offer) == 1000 * mib
    with pytest.raises(InvalidArgumentError, match="not a size"):
        NodeOptions(pool_size_max="much")


def test_only_stores_that_let_the_pool_grow_add_to_it() -> None:
    assert StoreOptions(pool_size="64MiB").pool_contribution_bytes() == 0
    assert StoreOptions(pool_size_max="80%").pool_contribution_bytes() == 0
    grown = StoreOptions(pool_size="64MiB", pool_size_max="80%")
    assert grown.pool_contribution_bytes() == 64 << 20
